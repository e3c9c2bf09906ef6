"""What the network learns from: text becomes documents, tokens on disk and packed batches, in this order.

- `config`: `CorpusConfig` says which text is read, with which tokenizer, and what is held out.
- `dataset`: `prepare` opens the sets of text and returns their tokens, ready to train on. Start reading here.
- `corpus`: many files as one corpus, identified by its content and split into training and held-out text.
- `sources`: which files a path, a folder or a Hub dataset stands for.
- `documents`: one file as a sequence of documents, on `text_files`, which decompresses and decodes it.
- `tokenizer`: text to token ids and back, on `tokenizer_files` and `detokenizer`.
- `tokenize`: text to files of tokens in the cache, once, in several processes.
- `token_files`: tokens on disk, and mixtures of several files.
- `rows`: which tokens make a row of T, concatenated and split or best-fit.
- `packing`: batches of rows with `cu_seqlens`. It is the only module here that imports torch.
- `chat`: conversations instead of text, as templates write them and as models answer.

Import from the modules themselves, so that a command loads only what it needs.
"""
