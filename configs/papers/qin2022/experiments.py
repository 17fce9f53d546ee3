"""Source, column and rows that the tables of Qin et al. 2022 share."""

from linear_transformer.reports.tables import Column, Experiment, Row, Table

PAPER = "Qin et al. 2022, The Devil in Linear Transformer (arXiv:2210.10340)"
_FILES = {"data.path": "wikitext103", "data.tokenizer": "gpt2"}
_PERPLEXITY = Column(
    "perplexity of masked tokens",
    metric="perplexity",
    split="validation",
    digits=2,
    tolerance=0.1,
)


def source(number: int) -> str:
    return f"{PAPER}, table {number}, as cited by others"


def ablation(number: int, title: str, rows: dict[str, tuple[str, float]], note: str = "") -> Table:
    """Table of bidirectional language models on WikiText-103.

    Args:
      rows: variant of `ablations.py` and published perplexity, by name of the row.
    """
    config = "configs/papers/qin2022/ablations.py"
    return Table(
        title=f"Bidirectional language models: {title}",
        source=source(number),
        note=" ".join(
            filter(
                None,
                (
                    note,
                    "The split is assumed to be the validation split.  The reduced twins read "
                    "Shakespeare in bytes.",
                ),
            )
        ),
        columns=(_PERPLEXITY,),
        rows=tuple(
            Row(
                name,
                (published,),
                paper=Experiment(f"{config}:{variant}", files=_FILES),
                reduced=Experiment(f"{config}:{variant},small"),
            )
            for name, (variant, published) in rows.items()
        ),
    )


def shakespeare(mechanism: str | None) -> Experiment | None:
    """Reduced twin of a causal language model, on Shakespeare in bytes."""
    return Experiment(f"configs/lm/shakespeare.py:{mechanism}") if mechanism else None
