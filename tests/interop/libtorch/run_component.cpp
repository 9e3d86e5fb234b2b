// Runs one component of a TorchScript artifact without Python.
//
//     run_component MODEL.pt OUTPUT_PREFIX INPUT.npy...
//
// Inputs go in by position, in the order of the manifest (`details.call`). Every output is written as
// OUTPUT_PREFIX0.npy, OUTPUT_PREFIX1.npy and so on. Exit code 2: wrong use; 1: libtorch refused.
#include <torch/script.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// The value behind a key of the header, a Python literal such as {'descr': '<f4', 'shape': (2, 3), }.
std::string after(const std::string& header, const std::string& key) {
  const auto at = header.find("'" + key + "':");
  if (at == std::string::npos) throw std::runtime_error("no " + key + " in the header");
  return header.substr(at + key.size() + 3);
}

torch::Tensor read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[8];
  if (!file.read(magic, 8) || std::memcmp(magic, "\x93NUMPY", 6) != 0) {
    throw std::runtime_error(path + " is no .npy file");
  }
  unsigned char bytes[4] = {0, 0, 0, 0};
  file.read(reinterpret_cast<char*>(bytes), magic[6] == 1 ? 2 : 4);
  std::string header(bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24, '\0');
  file.read(header.data(), static_cast<std::streamsize>(header.size()));
  if (after(header, "fortran_order").find("False") > 1) {
    throw std::runtime_error(path + " is not in C order");
  }
  const std::string kind = after(header, "descr").substr(0, 7);
  torch::ScalarType dtype;
  if (kind.find("<f4") != std::string::npos) {
    dtype = torch::kFloat32;
  } else if (kind.find("<i8") != std::string::npos) {
    dtype = torch::kInt64;
  } else {
    throw std::runtime_error(path + " holds neither float32 nor int64");
  }
  const std::string rest = after(header, "shape");
  std::istringstream numbers(rest.substr(rest.find('(') + 1, rest.find(')') - rest.find('(') - 1));
  std::vector<int64_t> shape;
  for (std::string number; std::getline(numbers, number, ',');) {
    if (number.find_first_of("0123456789") != std::string::npos) shape.push_back(std::stoll(number));
  }
  torch::Tensor tensor = torch::empty(shape, dtype);
  if (!file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()))) {
    throw std::runtime_error(path + " was cut short");
  }
  return tensor;
}

void write_npy(const std::string& path, torch::Tensor tensor) {
  tensor = tensor.to(torch::kFloat32).contiguous();
  std::ostringstream header;
  header << "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (const auto size : tensor.sizes()) header << size << ",";
  header << "), }";
  std::string text = header.str();
  text += std::string(64 - (text.size() + 11) % 64, ' ') + "\n";
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8);
  const char length[2] = {static_cast<char>(text.size() & 0xff), static_cast<char>(text.size() >> 8)};
  file.write(length, 2);
  file << text;
  file.write(static_cast<const char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  if (!file) throw std::runtime_error(path + " cannot be written");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: run_component MODEL.pt OUTPUT_PREFIX INPUT.npy...\n";
    return 2;
  }
  try {
    torch::jit::script::Module model = torch::jit::load(argv[1]);
    std::vector<torch::jit::IValue> inputs;
    for (int i = 3; i < argc; ++i) inputs.emplace_back(read_npy(argv[i]));
    torch::NoGradGuard no_grad;
    const auto outputs = model.forward(inputs).toTuple()->elements();
    for (size_t i = 0; i < outputs.size(); ++i) {
      write_npy(std::string(argv[2]) + std::to_string(i) + ".npy", outputs[i].toTensor());
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
