"""`layerbridge generate`."""

from typing import Annotated, Any

import typer

from layerbridge.cli.options import EncoderPlace, LLMPlace, TrustRemoteCode
from layerbridge.errors import ConfigError


def generate(
    run: Annotated[str, typer.Argument(help="Run folder, checkpoint folder or hub name.", show_default=False)],
    text: Annotated[
        str | None, typer.Argument(help="What the encoder reads, in any language.", show_default=False)
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", "-f", help="A field of the task's prompt. Repeatable.", metavar="NAME=TEXT"),
    ] = None,
    raw: Annotated[
        bool, typer.Option(help="Give the text to the encoder as it is, without the task's prompt.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option(help="Text for the LLM after the soft tokens; by default the recipe's.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="LLM tokens.")] = 32,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    scores: Annotated[bool, typer.Option(help="Also print the probability of each of the task's answers.")] = False,
    encoder: EncoderPlace = None,
    llm: LLMPlace = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Read a text in any language and answer.

    Example: `layerbridge generate runs/demo/transformer_softmax "மழையால் போட்டி நிறுத்தப்பட்டது" --scores`
    """
    fields = _fields(field)
    if (text is None) == (fields is None):
        raise ConfigError("Give either one TEXT or the prompt's fields, such as -f premise='...' -f hypothesis='...'.")
    if raw and text is None:
        raise ConfigError("--raw goes with one TEXT, not with --field.")
    from layerbridge.model.checkpoint import load_bridge

    bridge = load_bridge(run, encoder=encoder, llm=llm, trust_remote_code=trust_remote_code)
    given = fields if text is None else text
    assert given is not None
    source = given if raw and isinstance(given, str) else bridge.render(given)
    prompts = None if prompt is None else [prompt]
    if temperature > 0:
        typer.echo(
            bridge.generate([source], prompts=prompts, max_new_tokens=max_new_tokens, temperature=temperature)[0]
        )
    else:
        for piece in bridge.stream(source, prompt=prompt, max_new_tokens=max_new_tokens):
            typer.echo(piece, nl=False)
        typer.echo()
    if scores:
        _print_scores(bridge, source, prompts)


def _fields(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    fields = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(f"--field {pair!r} is not of the form NAME=TEXT.")
        fields[name] = value
    return fields


def _print_scores(bridge: Any, source: str, prompts: list[str] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    answers = (bridge.trained_on or {}).get("answers")
    if not answers:
        raise ConfigError("--scores needs a bridge that was trained on a task with answers; this one has none.")
    probabilities = bridge.score([source], answers, prompts=prompts).softmax(dim=-1)[0].tolist()
    table = Table("answer", "probability")
    for answer, probability in sorted(zip(answers, probabilities, strict=True), key=lambda pair: -pair[1]):
        table.add_row(answer, f"{probability:.3f}")
    Console().print(table)
