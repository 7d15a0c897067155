"""Continue prompts with a trained language model.

``python -m seqmodels.generate --run runs/quickstart --prompt "def "``

One prefill carries the prompts into the state, then every step feeds one token. Prompts of different lengths are padded
on the left with segment 0, which changes nothing: a prompt continues the same way alone and in a batch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from seqmodels import cli
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.models.lm import LanguageModel
from seqmodels.sampling import GREEDY, SamplingConfig, sample
from seqmodels.sharding import to_host

if TYPE_CHECKING:
    from seqmodels.data.base import Tokenizer

CHUNK = 16
"""Tokens per compiled call: the prints of a stream come this many at a time."""


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as ``tokens [B,T]``, and ``segment_ids [B,T]``: 0 on the left of the shorter ones, 1 else; both int32.

    Raises:
      UserError: no prompt, or one without tokens.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise UserError("prompt='' holds no token; set --prompt to at least one character")
    length = max(map(len, prompts))
    tokens = np.zeros((len(prompts), length), np.int32)
    segment_ids = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        segment_ids[row, length - len(prompt) :] = 1
    return tokens, segment_ids


@functools.partial(jax.jit, static_argnames=("model", "max_length"))
def prefill(model: LanguageModel, params: Any, tokens: Array, segment_ids: Array, max_length: int) -> Any:
    """The state after ``tokens [B,T]``, with room for `max_length` tokens in attention caches."""
    state = model.init_state(tokens.shape[0], max_length)
    return model.apply(params, tokens, state, segment_ids, method="hidden")[1]


@functools.partial(jax.jit, static_argnames=("model", "sampling", "vocab_size", "steps"), donate_argnames=("state",))
def decode(
    model: LanguageModel,
    params: Any,
    state: Any,
    token: Array,
    keys: Array,
    first: Array,
    sampling: SamplingConfig,
    vocab_size: int,
    steps: int,
) -> tuple[Any, Array]:
    """Feed ``token [B]`` and then what is chosen, for `steps` tokens: ``(state, tokens [B,steps])``.

    ``keys [B]`` are one random key per row, folded with the number of the token (`first` and up).
    """

    def step(carry: tuple[Any, Array], number: Array) -> tuple[tuple[Any, Array], Array]:
        state, token = carry
        logits, state, _ = cast(Any, model.apply(params, token[:, None], state))
        now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
        token = jax.vmap(lambda key, row: sample(key, row, sampling))(now, logits[:, 0, :vocab_size])
        return (state, token), token

    (state, _), tokens = jax.lax.scan(step, (state, token), first + jnp.arange(steps))
    return state, tokens.T


@functools.partial(jax.jit, static_argnames="rows")
def row_keys(seed: Array, rows: int) -> Array:
    """One random key per row, made of `seed` and its number."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(rows))


def stream(
    model: LanguageModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = GREEDY,
    seed: int = 0,
    vocab_size: int | None = None,
) -> Iterator[np.ndarray]:
    """New tokens of all prompts as they are made: int32 ``[B,n]`` pieces that add up to `max_new_tokens`.

    Args:
      model: the language model.
      params: its parameters.
      prompts: token ids, at least one per prompt.
      max_new_tokens: how many to make.
      sampling: how tokens are chosen.
      seed: row ``i`` draws from a key of its own made of `seed` and ``i``, whatever the other rows are.
      vocab_size: choose among the first ids only (a model's vocabulary may be padded); all by default.

    Raises:
      UserError: an empty prompt, an id outside of the model's vocabulary, or `max_new_tokens` below 1.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1; set --max-new-tokens")
    tokens, segment_ids = pad_left(prompts)
    if tokens.min() < 0 or tokens.max() >= model.cfg.vocab_size:
        bad = tokens.max() if tokens.max() >= model.cfg.vocab_size else tokens.min()
        raise UserError(f"prompt holds token id {bad}, but model.vocab_size={model.cfg.vocab_size}; fix the tokenizer")
    calls = -(-max_new_tokens // CHUNK)
    keys = row_keys(seed, len(prompts))
    state = prefill(model, params, tokens[:, :-1], segment_ids[:, :-1], tokens.shape[1] + calls * CHUNK)
    token: Any = tokens[:, -1]
    for call in range(calls):
        first = np.int32(call * CHUNK)
        size = model.cfg.vocab_size if vocab_size is None else vocab_size
        state, made = decode(model, params, state, token, keys, first, sampling, size, CHUNK)
        token = made[:, -1]
        yield to_host(made)[:, : max_new_tokens - call * CHUNK]


def generate(
    model: LanguageModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = GREEDY,
    seed: int = 0,
    vocab_size: int | None = None,
    stop: int | None = None,
) -> list[list[int]]:
    """New token ids of every prompt, cut before the first `stop`; the other arguments are `stream`'s."""
    pieces = []
    options = {"max_new_tokens": max_new_tokens, "sampling": sampling, "seed": seed, "vocab_size": vocab_size}
    for piece in stream(model, params, prompts, **options):
        pieces.append(piece)
        if stop is not None and all(stop in row for row in np.concatenate(pieces, axis=1)):
            break
    return [until(row.tolist(), stop) for row in np.concatenate(pieces, axis=1)]


def until(ids: list[int], stop: int | None) -> list[int]:
    """`ids` before the first `stop`."""
    return ids[: ids.index(stop)] if stop in ids else ids


def generate_text(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = GREEDY,
    seed: int = 0,
) -> list[str]:
    """What follows each text, up to the end of the document; every prompt stands at the beginning of one."""
    ids = [tokenizer.document(prompt).tolist() for prompt in prompts]
    options = {"max_new_tokens": max_new_tokens, "sampling": sampling, "seed": seed}
    made = generate(model, params, ids, vocab_size=tokenizer.vocab_size, stop=tokenizer.bos_id, **options)
    return [tokenizer.decode(row) for row in made]


def print_stream(model: LanguageModel, params: Any, tokenizer: Tokenizer, prompt: str, **options: Any) -> None:
    """Print `prompt` and what follows it, piece by piece; `options` are `stream`'s."""
    print(prompt, end="", flush=True)
    ids: list[int] = []
    shown = ""
    prompts = [tokenizer.document(prompt).tolist()]
    for piece in stream(model, params, prompts, vocab_size=tokenizer.vocab_size, **options):
        ids += piece[0].tolist()
        text = tokenizer.decode(until(ids, tokenizer.bos_id))
        ready = text.rstrip("\N{REPLACEMENT CHARACTER}")  # a character may still be incomplete
        if ready.startswith(shown):
            print(ready[len(shown) :], end="", flush=True)
            shown = ready
        if tokenizer.bos_id in ids:
            break
    print(tokenizer.decode(until(ids, tokenizer.bos_id))[len(shown) :])


def read_prompts(prompt: str | None, file: str | None) -> list[str]:
    """The prompt of the command line, or one per line of `file`.

    Raises:
      UserError: both or neither are given, the file cannot be read, or a prompt is empty.
    """
    if (prompt is None) == (file is None):
        raise UserError("give one of --prompt TEXT and --prompts-file FILE")
    prompts = [prompt] if prompt is not None else _lines(str(file))
    if not prompts or not all(prompts):
        line = prompts.index("") + 1 if prompts else 1
        where = "--prompt" if file is None else f"--prompts-file {file!r} line {line}"
        raise UserError(f"{where} is empty (''); give at least one character to continue")
    return [str(text) for text in prompts]


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--prompts-file {file!r} cannot be read ({error.strerror}); give a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts-file {file!r} is not UTF-8 at byte {error.start}; save it as UTF-8") from None


@cli.command
def main(argv: list[str]) -> None:
    """Entry point."""
    parser = cli.Parser(prog="python -m seqmodels.generate", description="Continue prompts with a trained model.")
    parser.add_argument("--run", required=True, metavar="RUN_DIR", help="run directory of train.py")
    parser.add_argument("--prompt", metavar="TEXT", help="what to continue")
    parser.add_argument("--prompts-file", metavar="FILE", help="one prompt per line, continued as one batch")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="tokens to make")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int, default=None, help="keep this many likeliest tokens")
    parser.add_argument("--top-p", type=float, default=None, help="keep the likeliest tokens of this probability")
    parser.add_argument("--greedy", action="store_true", help="the same as --temperature 0")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    cli.add_platform(parser)
    args = parser.parse_args(argv)
    sampling = GREEDY if args.greedy else SamplingConfig(args.temperature, args.top_k, args.top_p)
    prompts = read_prompts(args.prompt, args.prompts_file)
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens} must be at least 1; set it to what you want to read")
    cli.use_platform(args.platform)

    from seqmodels.runs import load_run

    run = load_run(args.run)
    if not isinstance(run.model, LanguageModel):
        raise UserError(f"--run {args.run!r} trained a classifier, which continues nothing; use a language model")
    tokenizer = run.experiment.data.tokenizer
    if tokenizer is None:
        kind = type(run.experiment.data).__name__
        raise UserError(f"--run {args.run!r} was trained on {kind}, whose tokens are not text; use a language model")
    options = {"max_new_tokens": args.max_new_tokens, "sampling": sampling, "seed": args.seed}
    if len(prompts) == 1:
        print_stream(run.model, run.params, tokenizer, prompts[0], **options)
        return
    for prompt, text in zip(prompts, generate_text(run.model, run.params, tokenizer, prompts, **options), strict=True):
        print(prompt + text, end="\n---\n")


if __name__ == "__main__":
    sys.exit(main())
