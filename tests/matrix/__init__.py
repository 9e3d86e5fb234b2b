"""Every family × every target at tiny random size: what is supported, what is refused and why.

`python -m tests.matrix` fills `exporter/architectures/matrix.json`, cell by cell; the table in
`exporter/architectures/README.md` is made from that file and never written by hand.
"""
