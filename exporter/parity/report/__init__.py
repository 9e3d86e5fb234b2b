"""The report as people read it: one self-contained page. The data is `parity.schema.Report`."""
