"""What the server keeps on disk: files, batches, and the database that knows of them."""

from pybatch.serve.store.batches import Batch, BatchStore
from pybatch.serve.store.files import FileStore, StoredFile
from pybatch.serve.store.storage import Storage, open_storage

__all__ = ["Batch", "BatchStore", "FileStore", "Storage", "StoredFile", "open_storage"]
