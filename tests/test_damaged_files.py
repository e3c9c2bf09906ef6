"""Every reader of files that others wrote, on damaged and hostile ones: it reads them, or says in one line why not."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from parity_cases import TINY

import gossamer
from damage import Damage, damaged_bytes, damaged_json, damaged_lines, damaged_text, damaged_yaml
from gossamer.cache import cached_folder, read_cached_json, write_cached_json
from gossamer.cost.ledger import Ledger, read_ledger
from gossamer.cost.network import count_network
from gossamer.data.config import CorpusConfig
from gossamer.data.documents import read_documents
from gossamer.data.packing import TrainBatches
from gossamer.data.progress import ProgressDisplay
from gossamer.data.sources import find_files
from gossamer.data.token_files import Mixture, TokenFile, TokenFileMeta, open_token_file
from gossamer.data.tokenizer import Tokenizer, train_bpe
from gossamer.errors import UserError
from gossamer.hub import load, save
from gossamer.hub.gguf_vocabulary import read_vocabulary
from gossamer.infer.defaults import generation_config
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.plan import load_catalogue, load_fitted_efficiency, network_from_json
from gossamer.plan.catalogue import SHIPPED
from gossamer.plan.efficiency import CERTIFICATE_FORMAT, apply_certificate
from gossamer.reading import read_json, read_object
from gossamer.report import write_report
from gossamer.run.budget import read_plan
from gossamer.run.checkpoint import best_checkpoint, newest_checkpoint
from gossamer.serve.middleware import ApiKeys
from gossamer.train.recipe import Recipe, load_recipe, to_yaml

SEED = 20_261
SLOWEST = 20  # seconds of computing after which a reader hangs


@dataclass(frozen=True)
class Case:
    """A reader.

    Attributes:
        files: whole ones, by name
        damaged: which of them are damaged, each with how
        read: what reads the folder that they lie in
        share: of the inputs, as a multiple of the others'
    """

    files: dict[str, bytes]
    damaged: dict[str, Damage]
    read: Callable[[Path], Any]
    share: float = 1.0


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


CONFIG = ModelConfig(**TINY)
LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100, "rope_parameters": {"rope_theta": 1e4},
}  # fmt: skip
SPARSE = LLAMA | {
    "model_type": "qwen3_moe", "num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "mlp_only_layers": [0], "decoder_sparse_step": 1, "layer_types": ["full_attention", "sliding_attention"],
    "sliding_window": 16, "tie_word_embeddings": False,
}  # fmt: skip
LATENT = LLAMA | {
    "model_type": "deepseek_v3", "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1,
}  # fmt: skip
GENERATION = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True,
              "eos_token_id": [1, 2]}  # fmt: skip
SHARD = {"train": {"dtype": "uint16", "tokens": 40, "documents": 2, "bytes": 100}}
CERTIFICATE = {
    "format": CERTIFICATE_FORMAT, "gossamer": gossamer.__version__,
    "device": {"name": "NVIDIA H100 80GB HBM3"}, "verdict": "pass",
    "measured": {"gemm_flops": {"bfloat16": 6e14}, "copy_bytes_per_second": 2e12, "collective_bytes_per_second": 1e11},
}  # fmt: skip
PLAN = {"width": 128, "tokens": 1e6, "epochs": 0.5, "bits_per_byte": 2.0, "error": 0.02, "extrapolated": False,
        "tokens_per_second": 5e3, "measured": [64, 128]}  # fmt: skip
EVENTS = [
    {"event": "start", "time": 1.7e9, "step": 0, "gossamer": "1", "torch": "2", "device": "cpu", "parameters": 1000,
     "active_parameters": 500, "flops_per_token": 3000, "tokens_per_step": 512, "steps": 8, "corpus": "text"},
    {"event": "plan", "step": 0, **PLAN},
    {"event": "pairs", "step": 0, "loss": 5.0, "seconds": 1.0},
    *({"event": "train", "step": step, "tokens": 512 * step, "elapsed": 1.5 * step, "loss": 6 - step / 4,
       "mtp_loss": [5.0], "aux_loss": 1.0, "z_loss": 0.1, "grad_norm": 1.0, "learning_rate": 1e-3,
       "tokens_per_second": 300.0, "mfu": 0.3, "memory": 1 << 28} for step in (1, 2, 4, 6, 8)),
    {"event": "experts", "step": 4, "tokens": 2048, "max_over_mean": [1.2, 1.5], "dead": [0, 1], "entropy": [0.9, 0.8],
     "load": [[1.0, 1.0, 0.5, 1.5], [2.0, 0.0, 1.0, 1.0]]},
    {"event": "eval", "step": 4, "tokens": 2048, "elapsed": 6.0, "set": "held-out", "eval_tokens": 100, "loss": 5.0,
     "perplexity": 148.0, "bits_per_byte": 2.1, "mtp_acceptance": [0.5], "flops": 1e9, "device_seconds": 8.0},
    {"event": "sample", "step": 4, "text": "Once \ud800 upon"},
    {"event": "checkpoint", "step": 4, "seconds": 0.5, "best": True},
    {"event": "skip", "step": 5, "reason": "gradient norm inf, loss 3"},
    {"event": "rollback", "step": 6, "to": 4},
    {"event": "resume", "step": 4, "time": 1.7e9 + 60},
    {"event": "end", "step": 8, "tokens": 4096, "elapsed": 12.0, "set": "held-out", "eval_tokens": 900, "loss": 4.5,
     "perplexity": 90.0, "bits_per_byte": 1.9, "mtp_acceptance": [0.6], "flops": 2e9, "device_seconds": 16.0},
]  # fmt: skip


def shard() -> TokenFile:
    offsets = np.array([0, 30, 34, 90, 100], np.int64)
    return TokenFile(np.zeros(100, np.uint16), offsets, 300, "0" * 32)


def batches() -> TrainBatches:
    return TrainBatches(Mixture({"a": shard(), "b": shard()}, {"a": 1.0, "b": 2.0}), 2, 16, seed=3)


def ledger() -> Ledger:
    made = Ledger(device="cpu", peak=1e11, price=2.0, joules=5.0, joules_seconds=2.0, fraction=0.5)
    made.book_step(True, 512, {"attention": 1e6, "experts": 2e6}, 1.0)
    made.book_step(False, 512, {"attention": 1e6, "experts": 2e6}, 1.0)
    made.book_overhead("start", 3.0)
    return made


def read_run(folder: Path) -> None:
    """What `gossamer report` and a resumed run read."""
    read_plan(folder)
    write_report(folder)


def read_ledger_file(folder: Path) -> None:
    found = read_ledger(folder)
    assert found is not None
    found.to_json()


def read_tokenizer(folder: Path) -> None:
    made = Tokenizer.load(folder)
    made.chat_template_for(True)
    assert (isinstance(made.prefix_ids, tuple) and made.bos_id is None) or isinstance(made.bos_id, int)
    ids = made.encode("one two <|endoftext|>", special=True)
    stream = made.stream()
    "".join(stream.push(index) for index in ids)
    made.decode(ids)
    made.num_bytes_per_token()
    made.save(folder / "saved")
    generation_config(folder)


def read_checkpoints(folder: Path) -> None:
    """The manifest holds whatever the damaged progress.json is, so that it is read."""
    for one in (folder / "checkpoints").iterdir():
        content = (one / "progress.json").read_bytes()
        manifest = (one / "manifest.json").read_bytes()
        digest = f"{len(content)}:{hashlib.sha256(content).hexdigest()}"
        (one / "manifest.json").write_bytes(manifest.replace(b"PROGRESS", digest.encode()))
    best_checkpoint(folder)
    if (found := newest_checkpoint(folder)) is not None:
        progress = read_json(found / "progress.json", dict)
        if isinstance(progress.get("data"), dict):
            made = batches()
            made.load_state_dict(progress["data"])
            for _ in range(3):
                next(made)


def read_documents_of(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        for errors in ("strict", "replace"):
            try:
                for document in read_documents(folder / name, "text", errors):
                    for chunk in document:
                        chunk.encode()
            except UserError:
                if errors == "replace":
                    raise

    return read


def read_shards(folder: Path) -> None:
    meta = read_json(folder / "meta.json", dict[str, TokenFileMeta])
    for part in meta:
        try:
            open_token_file(folder, part, meta[part], "x").read(0, 1)
        except (OSError, ValueError):  # which makes it anew
            return


def read_entry(folder: Path) -> None:
    """A cache's entry: whatever lies there, it is whole afterwards."""

    def build(place: Path) -> None:
        (place / "a.bin").write_bytes(b"abc")

    cached_folder(folder / "entry", lambda place: (place / "a.bin").is_file(), build)
    assert (folder / "entry" / "a.bin").read_bytes() == b"abc"
    found = read_cached_json(folder / "note.json", dict[str, list[int]])
    assert found is None or all(type(one) is int for items in found.values() for one in items)


def read_config(folder: Path) -> None:
    count_network(ModelConfig.from_dict(read_object(folder / "config.json")))


def read_workload(folder: Path) -> None:
    assert network_from_json(read_object(folder / "config.json"), "net").parameters > 0


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Every reader with whole files of its."""
    folder = tmp_path_factory.mktemp("whole")

    def files(place: Path) -> dict[str, bytes]:
        return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}

    bpe = train_bpe(["one two three " * 50, "four five six " * 50], 270)
    bpe.save(folder / "bpe")
    tokenizer = files(folder / "bpe")
    named = json.loads(tokenizer["tokenizer_config.json"]) | {
        "bos_token": {"content": "<|endoftext|>"},
        "chat_template": [{"name": "default", "template": "{{ x }}"}],
    }
    whole = tokenizer | {
        "tokenizer_config.json": encoded(named),
        "special_tokens_map.json": encoded({"eos_token": "<|endoftext|>", "bos_token": {"content": "one"}}),
        "config.json": encoded({"vocab_size": 270, "eos_token_id": 256}),
        "generation_config.json": encoded(GENERATION),
    }
    torch.manual_seed(0)
    save(CausalLM(CONFIG), folder / "model")
    model = files(folder / "model")
    (folder / "cache").mkdir()
    cached_folder(
        folder / "cache" / "entry", lambda _: True, lambda place: [(place / "a.bin").write_bytes(b"abc"), None][1]
    )
    write_cached_json(folder / "cache" / "note.json", {"x": [1, 2]})
    cache = files(folder / "cache")
    cache["entry/checked.json"] = encoded({"a.bin": [1, 2, 3, 4]})
    arrow = pytest.importorskip("pyarrow")
    parquet, feather = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.feather")
    table = arrow.table({"text": ["one", "two" * 100], "n": [1, 2]})
    parquet.write_table(table, folder / "a.parquet")
    feather.write_feather(table, folder / "a.arrow", compression="uncompressed")
    records = b"\n".join(encoded({"text": f"document {number} é", "n": number}) for number in range(4)) + b"\n"
    state = batches()
    next(state)
    progress = {"progress": {"step": 4, "tokens": 2048, "elapsed": 6.0, "fraction": 0.5}, "data": state.state_dict(),
                "validation_loss": 5.0, "ledger": asdict(ledger().useful)}  # fmt: skip
    metadata = b"metadata"
    manifest = {"files": {"progress.json": "PROGRESS", ".metadata": f"8:{hashlib.sha256(metadata).hexdigest()}"}}
    step = "checkpoints/step-00000004"
    recipe = to_yaml(Recipe()).encode()
    run = {
        "metrics.jsonl": b"".join(encoded(event) + b"\n" for event in EVENTS),
        "config.yaml": recipe,
        "ledger.json": ledger().to_json(),
    }
    chip = load_catalogue().chip("h100")
    own = yaml.safe_load(SHIPPED.read_text())
    small = yaml.safe_dump({"chips": {"mine": own["chips"]["h100"]}, "currencies": own["currencies"]}).encode()

    return {
        "config.json, its own family": Case(
            {"config.json": encoded(CONFIG.to_dict())}, {"config.json": damaged_json}, read_config, 3
        ),
        "config.json, llama": Case({"config.json": encoded(LLAMA)}, {"config.json": damaged_json}, read_workload, 2),
        "config.json, qwen3_moe": Case(
            {"config.json": encoded(SPARSE)}, {"config.json": damaged_json}, read_workload, 2
        ),
        "config.json, deepseek": Case(
            {"config.json": encoded(LATENT)}, {"config.json": damaged_json}, read_workload, 2
        ),
        "config.json of a model": Case(model, {"config.json": damaged_json}, load, 0.4),
        "weights": Case(model, {"model.safetensors": damaged_bytes}, load, 0.4),
        "index of shards": Case(
            {
                "config.json": model["config.json"],
                "a.safetensors": model["model.safetensors"],
                "model.safetensors.index.json": encoded(
                    {
                        "metadata": {},
                        "weight_map": {
                            name: "a.safetensors" for name in _names(folder / "model" / "model.safetensors")
                        },
                    }
                ),
            },
            {"model.safetensors.index.json": damaged_json},
            load,
            0.4,
        ),
        "generation_config.json": Case(whole, {"generation_config.json": damaged_json}, generation_config, 2),
        "tokenizer_config.json": Case(
            whole, {"tokenizer_config.json": damaged_json, "config.json": damaged_json}, read_tokenizer
        ),
        "special_tokens_map.json": Case(
            whole | {"tokenizer_config.json": b"{}"}, {"special_tokens_map.json": damaged_json}, read_tokenizer, 0.5
        ),
        "tokenizer.json": Case(whole, {"tokenizer.json": damaged_json}, read_tokenizer),
        "tokenizer.json for llama.cpp": Case(
            whole, {"tokenizer.json": damaged_json}, lambda place: read_vocabulary(place, 270), 0.5
        ),
        "recipe": Case(
            {"recipe.yaml": recipe},
            {"recipe.yaml": damaged_yaml},
            lambda place: load_recipe(place / "recipe.yaml"),
            0.7,
        ),
        "catalogue": Case(
            {"own.yaml": small}, {"own.yaml": damaged_yaml}, lambda place: load_catalogue([place / "own.yaml"]), 0.3
        ),
        "certificate": Case(
            {"certificate.json": encoded(CERTIFICATE)},
            {"certificate.json": damaged_json},
            lambda place: apply_certificate(place / "certificate.json", chip, load_fitted_efficiency().rates),
            2,
        ),
        "ledger": Case({"ledger.json": ledger().to_json()}, {"ledger.json": damaged_json}, read_ledger_file, 2),
        "metrics": Case(run, {"metrics.jsonl": damaged_lines}, read_run, 0.15),
        "config.yaml of a run": Case(run, {"config.yaml": damaged_yaml}, read_run, 0.05),
        "ledger of a run": Case(run, {"ledger.json": damaged_json}, read_run, 0.05),
        "progress": Case(
            {
                f"{step}/progress.json": encoded(progress),
                f"{step}/.metadata": metadata,
                f"{step}/manifest.json": encoded(manifest),
            },
            {f"{step}/progress.json": damaged_json},
            read_checkpoints,
            2,
        ),
        "manifest": Case(
            {
                f"{step}/progress.json": encoded(progress),
                f"{step}/.metadata": metadata,
                f"{step}/manifest.json": encoded(manifest),
            },
            {f"{step}/manifest.json": damaged_json},
            read_checkpoints,
        ),
        "shards": Case(
            {"meta.json": encoded(SHARD), "train.bin": bytes(80), "train.offsets.bin": np.array([0, 20, 40]).tobytes()},
            {"meta.json": damaged_json},
            read_shards,
        ),
        "cache": Case(
            cache,
            {"entry/seal.json": damaged_json, "entry/checked.json": damaged_json, "note.json": damaged_json},
            read_entry,
        ),
        "state.json": Case(
            {
                "data-00000.arrow": (folder / "a.arrow").read_bytes(),
                "state.json": encoded({"_data_files": [{"filename": "data-00000.arrow"}], "_fingerprint": "x"}),
                "dataset_info.json": b"{}",
            },
            {"state.json": damaged_json},
            lambda place: list(find_files(str(place), CorpusConfig(), ProgressDisplay(False))),
        ),
        "JSONL": Case({"a.jsonl": records}, {"a.jsonl": damaged_lines}, read_documents_of("a.jsonl"), 2),
        "JSON": Case(
            {"a.json": encoded([{"text": "one"}, "two", {"text": "three"}])},
            {"a.json": damaged_json},
            read_documents_of("a.json"),
        ),
        "CSV": Case({"a.csv": b'text,n\n"one, two",1\nthree,2\n'}, {"a.csv": damaged_text}, read_documents_of("a.csv")),
        "text": Case({"a.txt": "some text é\n".encode() * 9}, {"a.txt": damaged_text}, read_documents_of("a.txt")),
        "Parquet": Case(
            {"a.parquet": (folder / "a.parquet").read_bytes()},
            {"a.parquet": damaged_bytes},
            read_documents_of("a.parquet"),
            0.5,
        ),
        "Arrow": Case(
            {"a.arrow": (folder / "a.arrow").read_bytes()},
            {"a.arrow": damaged_bytes},
            read_documents_of("a.arrow"),
            0.5,
        ),
        "keys": Case(
            {"keys": b"# who\nanna 0123456789abcdef0123\n0123456789abcdef4567\n"},
            {"keys": damaged_text},
            lambda place: ApiKeys(place / "keys").name_of("0123456789abcdef0123"),
            0.5,
        ),
    }


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        return list(handle.keys())


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what hangs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no end after {SLOWEST} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SLOWEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@dataclass
class Outcomes:
    """How often each reader took its files or refused them, and what it did beside that."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def try_all(self, cases: dict[str, Case], wanted: int, folder: Path, part: int = 0, parts: int = 1) -> None:
        shares = sum(case.share for case in cases.values())
        for name, case in cases.items():
            for number in range(part, max(1, round(wanted * case.share / shares)), parts):
                self.try_one(name, case, number, folder / "case")

    def try_one(self, name: str, case: Case, number: int, folder: Path) -> None:
        chance = random.Random(f"{SEED} {name} {number}")
        shutil.rmtree(folder, ignore_errors=True)
        chosen = chance.choice(list(case.damaged))
        for file, content in case.files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(case.damaged[file](chance, content) if file == chosen else content)
        began = time.process_time()
        try:
            with bounded():
                case.read(folder)
            outcome = "read"
        except UserError as error:
            outcome = "refused"
            message = str(error)
            if "\n" in message.strip() or len(message) > 2000:
                self.wrong.append(f"{name} {number}: {len(message)} characters: {message[:200]!r}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = "failed"
            self.wrong.append(f"{name} {number}: {type(error).__name__}: {str(error)[:200]}")
        taken = time.process_time() - began
        if taken > SLOWEST and outcome != "failed":  # in native code, which no signal ends
            outcome = "failed"
            self.wrong.append(f"{name} {number}: took {taken:.0f} s")
        self.counts[name, outcome] += 1
        self.slowest = max(self.slowest, (taken, f"{name} {number}"))

    def lines(self) -> list[str]:
        """For people."""
        total = Counter[str]()
        for (_, outcome), count in self.counts.items():
            total[outcome] += count
        seconds, which = self.slowest
        return [
            f"{sum(total.values()):,} inputs: {', '.join(f'{count:,} {outcome}' for outcome, count in total.items())}",
            f"the slowest took {seconds:.1f} s ({which})",
            *(f"  {name:<32} {outcome:<8} {count:,}" for (name, outcome), count in sorted(self.counts.items())),
        ]


def test_whole_files_are_read(cases: dict[str, Case], tmp_path: Path) -> None:
    for name, case in cases.items():
        for file, content in case.files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        case.read(tmp_path / name)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(cases: dict[str, Case], tmp_path: Path) -> None:
    found = Outcomes()
    found.try_all(cases, 400, tmp_path)
    assert found.wrong == []
    assert {outcome for _, outcome in found.counts} == {"read", "refused"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(4))
def test_tens_of_thousands_of_damaged_files(
    cases: dict[str, Case], tmp_path: Path, capsys: pytest.CaptureFixture[str], part: int
) -> None:
    found = Outcomes()
    found.try_all(cases, 55_000, tmp_path, part, 4)
    with capsys.disabled():
        print("", *found.lines(), *found.wrong[:50], sep="\n")
    assert found.wrong == []
