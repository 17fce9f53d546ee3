"""Program of eval.py: its flags, and evaluation or sampling."""

import ml_collections
from absl import flags

from linear_transformer.cli import command_line, compile_only, process
from linear_transformer.errors import ConfigError
from linear_transformer.inference.evaluation import Run, evaluate, sample
from linear_transformer.inference.generation import Sampler
from linear_transformer.runtime import compile_cache, distributed, program
from linear_transformer.training import run_folder

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SPLIT = flags.DEFINE_string("split", "validation", "train, validation or test.")
_STATEFUL = flags.DEFINE_bool(
    "stateful", True, "Also with the state carried through each document, where it is constant."
)
_PROMPT = flags.DEFINE_string("prompt", None, "Sample a continuation of this text instead.")
_NUM_TOKENS = flags.DEFINE_integer("num_tokens", 200, "Tokens to sample.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 takes the most probable token.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Only the k most probable tokens; 0 for all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Only the most probable tokens of mass p.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sample.", 0, 2**32 - 1)


@flags.validator(_PROMPT.name, message="not UTF-8")
def _is_utf8(text: str | None) -> bool:
    return text is None or text == text.encode(errors="replace").decode()


def parse(argv: list[str]) -> tuple[ml_collections.ConfigDict | None]:
    """Returns the config to compile; None to evaluate or to sample."""
    process.show_in_help(__name__, compile_only.__name__)
    if compile_only.requested():
        config, _ = command_line.parse(argv, default="configs/default.py")
        return (config,)
    program.parse_flags(argv)
    return (None,)


def main(config: ml_collections.ConfigDict | None) -> None:
    if config is not None:
        compile_only.report("decode", config)
        return
    if _WORKDIR.value is None:
        raise ConfigError("--workdir is missing: the folder of a run")
    sampler = Sampler(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    distributed.initialize()
    cache = compile_cache.enable()
    trained = Run.load(run_folder.path_of(_WORKDIR.value), spread=_PROMPT.value is None)
    if _PROMPT.value is None:
        print(f"compiled programs: {cache}", flush=True)
        evaluate(trained, _SPLIT.value, stateful=_STATEFUL.value)
    else:
        sample(trained, _PROMPT.value, _NUM_TOKENS.value, sampler, _SEED.value)
