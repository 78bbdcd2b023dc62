"""A server on loopback that answers as the hub does, with small random files in the place of the real ones."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

COMMIT = "0" * 39 + "1"


class _Hub(BaseHTTPRequestHandler):
    """Repositories are folders OWNER/NAME (or NAME) below `root`; those in `gated` want a token."""

    protocol_version = "HTTP/1.1"
    root: ClassVar[Path]
    gated: ClassVar[set[str]]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_args: object) -> None:
        """Quiet."""

    def _answer(self, *, with_body: bool) -> None:
        status, headers, body = self._look_up(self.path.split("?")[0].strip("/"))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _look_up(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if not path:
            return 200, {}, b"a stand-in for the hub"
        if path.startswith("api/models/") and "/tree/" in path:  # asked about folders that no stand-in has
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        if path.startswith("api/models/"):
            return self._describe(path.removeprefix("api/models/").split("/revision/")[0])
        if "/resolve/" not in path:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        repository, _, rest = path.partition("/resolve/")
        if not (self.root / repository).is_dir():
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if repository in self.gated and "Authorization" not in self.headers:
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        file = self.root / repository / rest.partition("/")[2]
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        body = file.read_bytes()
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body

    def _describe(self, repository: str) -> tuple[int, dict[str, str], bytes]:
        folder = self.root / repository
        if not folder.is_dir():
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        about = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()


@contextmanager
def hub(root: Path, gated: tuple[str, ...] = ()) -> Iterator[str]:
    """Serve the repositories below `root`; the value is the address for HF_ENDPOINT."""
    handler = type("Hub", (_Hub,), {"root": root, "gated": set(gated)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_tiny_gpt2(root: Path, layers: int = 3, width: int = 16) -> None:
    """Write a random model of GPT-2's form, and dictionaries to go with it, into their repositories below `root`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = ["<|endoftext|>", "The", "Eiffel", "tower", "is", "in", "Paris", "."]
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=2, n_positions=32, vocab_size=len(words), bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(root / "gpt2")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    ).save_pretrained(root / "gpt2")
    write_tiny_sae(
        root / "jbloom/GPT2-Small-SAEs-Reformatted/blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre", width
    )
    write_tiny_transcoder(
        root / "callummcdougall/arena-demos-transcoder/gpt2-small-layer-1-mlp-transcoder-folded-b_dec_out", 1, width
    )


def write_tiny_sae(folder: Path, hook_name: str, width: int, d_sae: int = 32) -> None:
    """Write a random dictionary in SAELens's form."""
    import torch
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(hook_name=hook_name, model_name="gpt2-small", prepend_bos=True)
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=d_sae, metadata=metadata))
    torch.nn.init.normal_(sae.b_dec, std=0.1)
    sae.save_model(folder)


def write_tiny_transcoder(folder: Path, layer: int, width: int, d_sae: int = 32) -> None:
    """Write a random transcoder of an MLP in SAELens's form."""
    from sae_lens import Transcoder, TranscoderConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(
        hook_name=f"blocks.{layer}.ln2.hook_normalized",
        hook_name_out=f"blocks.{layer}.hook_mlp_out",
        model_name="gpt2-small",
    )
    config = TranscoderConfig(d_in=width, d_out=width, d_sae=d_sae, apply_b_dec_to_input=False, metadata=metadata)
    Transcoder(config).save_model(folder)
