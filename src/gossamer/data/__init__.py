"""What the network eats: text, then documents, then tokens on disk, then packed batches. One way, in this order:

- ``config``: ``CorpusConfig``, which text, which tokenizer, what is held out;
- ``sources``: one file (text, JSONL, Parquet) as a stream of documents; ``hub_dataset``: a Hub dataset as one such
  file;
- ``corpus``: many files and folders as one fingerprinted, split corpus;
- ``sets``: the named sets of text that a corpus is mixed from, each split into what is learnt and what is held out;
- ``tokenizer``: byte-level BPE, characters, or anybody's ``tokenizer.json`` (``tokenizer_files``);
- ``tokenise``: text to ``shards``, once, into the cache (``cache``), in several processes (``workers``);
- ``dataset``: ``prepare``, all of the above: a ``mixture`` to train on, held-out shards, the tokenizer;
- ``rows``: which tokens make a row of T, concatenated and split or best-fit;
- ``packing``: batches of rows with ``cu_seqlens``. The only one that imports torch.

Import from the modules themselves, so that a verb loads only what it needs.
"""
