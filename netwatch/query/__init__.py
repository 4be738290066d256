"""Questions to the stored reports, in SQL, answered where the sealed files lie."""
