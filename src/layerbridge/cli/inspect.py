"""`layerbridge inspect`: which encoder layers each token draws on."""

from pathlib import Path
from typing import Annotated

import typer

from layerbridge.cli.options import EncoderPlace, LLMPlace, TrustRemoteCode

SHADES = (236, 237, 24, 25, 31, 37, 43, 49, 85, 121)
"""Background colours (256-colour palette), from no weight to all of it."""


def inspect(
    run: Annotated[str, typer.Argument(help="Run folder, checkpoint folder or hub name.", show_default=False)],
    text: Annotated[str, typer.Argument(help="A text in any language.", show_default=False)],
    raw: Annotated[bool, typer.Option(help="Without the task's prompt around it.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the text, coloured by layer, as one HTML file.", show_default=False)
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Of the text, such as si; for --html.", show_default=False)
    ] = None,
    encoder: EncoderPlace = None,
    llm: LLMPlace = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show which encoder layers each token of a text draws on, in percent.

    Example: `layerbridge inspect runs/demo/transformer_softmax "වැසි නිසා තරගය නැවතුණි"`
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from layerbridge.errors import ConfigError
    from layerbridge.languages import language as find_language
    from layerbridge.model.checkpoint import load_bridge

    if language is not None and html is None:
        raise ConfigError(f"--language {language} says how to draw the text in HTML; give --html FILE as well.")
    code = find_language(language).code if language else ""
    bridge = load_bridge(run, encoder=encoder, llm=llm, trust_remote_code=trust_remote_code)
    read = text if raw else bridge.render(text)
    (found,) = bridge.layer_weights([read])
    if html is not None:
        from layerbridge.analysis import TokenWeights
        from layerbridge.atomic import replace_text
        from layerbridge.reporting.page import render_text

        weights = tuple(map(tuple, found.weights.tolist()))
        sentence = TokenWeights(language=code, text=read, tokens=found.tokens, weights=weights)
        replace_text(html, render_text(sentence, found.layers, run=Path(run).name, about=bridge.config.fusion.name))
        typer.echo(html)
        return
    table = Table("token", *(f"layer {n}" if i == 0 else str(n) for i, n in enumerate(found.layers)), pad_edge=False)
    for token, row in zip(found.tokens, found.weights.tolist(), strict=True):
        table.add_row(token, *(_cell(weight, Text) for weight in row))
    table.add_section()
    table.add_row("mean", *(_cell(weight, Text) for weight in found.weights.mean(dim=0).tolist()))
    Console().print(table)


def _cell(weight: float, kind):  # type: ignore[no-untyped-def]
    shade = SHADES[min(int(weight * len(SHADES)), len(SHADES) - 1)]
    ink = "black" if shade > 40 else "white"
    return kind(f"{100 * weight:3.0f}", style=f"{ink} on color({shade})")
