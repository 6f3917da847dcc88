"""The press: what runs leave behind, tables, claims, publishing, the report."""
