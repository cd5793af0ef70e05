"""How a job's results are written as tables: JSON Lines, CSV and Parquet files, and columns beside the caller's own."""

from pybatch.jobs.results.tables.formats import OUTPUT_FORMATS, TableFormat, table_format
from pybatch.jobs.results.tables.join import join_results, write_joined
from pybatch.jobs.results.tables.write import write_table

__all__ = ["OUTPUT_FORMATS", "TableFormat", "join_results", "table_format", "write_joined", "write_table"]
