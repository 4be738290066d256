"""The metrics: what each means (``table``), the memory in which processes count (``board``), their text form."""
