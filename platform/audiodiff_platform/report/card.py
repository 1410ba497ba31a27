"""Card of a loop on a page: its picture, its player, its measurements and its parameters."""

from collections.abc import Mapping

from audiodiff_platform.report.document import data_uri, text


def card(
    name: str,
    picture: bytes | None,
    audio: str,
    *,
    measured: Mapping[str, str] | None = None,
    parameters: Mapping[str, str] | None = None,
    keys: Mapping[str, object] | None = None,
) -> str:
    """Return the markup of a card.

    Args:
        name: Name of the loop.
        picture: PNG of the loop, or None.
        audio: Address of the audio file: a relative link or a `data:` URI.
        measured: Measurements with units by name.
        parameters: Parameters by name.
        keys: Values by which the script of the page sorts and filters, by name. None is left out.
    """
    title = text(name)
    data = "".join(f' data-{key}="{text(value)}"' for key, value in (keys or {}).items() if value is not None)
    image = f'<img alt="mel picture of {title}" src="{data_uri("image/png", picture)}">' if picture else ""
    details = (
        f"<details><summary>Parameters</summary>{_terms('parameters', parameters)}</details>" if parameters else ""
    )
    return (
        f'<article class="loop"{data}><div class="picture">{image}</div><h3><bdi>{title}</bdi></h3>'
        f'<audio controls loop preload="none" aria-label="{title}" src="{text(audio)}"></audio>'
        f"{_terms('measured', measured) if measured else ''}{details}</article>\n"
    )


def _terms(kind: str, terms: Mapping[str, str]) -> str:
    pairs = "".join(
        f"<div><dt>{text(name)}</dt><dd><bdi>{text(value)}</bdi></dd></div>" for name, value in terms.items()
    )
    return f'<dl class="{kind}">{pairs}</dl>'
