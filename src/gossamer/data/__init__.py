"""What the network eats: text, then documents, then tokens on disk, then packed batches. One way, in this order:

- ``config``: ``CorpusConfig``, which text, which tokenizer, what is held out;
- ``sources``: one file (text, JSONL, Parquet) as a stream of documents; ``hub_dataset``: a Hub dataset as one such
  file;
- ``corpus``: many files and folders as one fingerprinted, split corpus;
- ``tokenizer``: byte-level BPE, characters, or anybody's ``tokenizer.json``;
- ``dataset``: ``prepare``, which tokenises once into the cache (``cache``) and memory-maps the result;
- ``packing``: rows of T tokens with ``cu_seqlens``. The only one that imports torch.

Import from the modules themselves, so that a verb loads only what it needs.
"""
