"""The report: values (Report, Section, Figure, Table) turned into one folder of pages and data."""
