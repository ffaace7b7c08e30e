"""Which part of a request goes through the encoder. Pure functions, and the only place that decides it.

- What **users** say goes through the encoder: the contents of the user messages in order, a line break between them,
  put into the prompt of the task that the bridge was trained on, if that has one field. `raw` leaves the prompt away;
  `fields` fills a prompt with several fields, and the one that is left out is what the users say.
- **The rest** (system, developer and assistant messages) is read by the LLM as text, after the soft tokens and before
  the prompt that the run configured.
- A completion's `prompt` is what a user says; so is a text to classify or to inspect.
"""

from collections.abc import Mapping, Sequence

from layerbridge.errors import DataError
from layerbridge.prompt import Part, prompt_fields, prompt_parts
from layerbridge.serving.engine import Reading, ServedModel
from layerbridge.serving.errors import bad_request
from layerbridge.serving.limits import Limits
from layerbridge.serving.wire import Extension, Message

TEXT = "text"
"""The name of what a user says where no prompt has a name for it."""


def read_chat(messages: Sequence[Message], model: ServedModel, extension: Extension, limits: Limits) -> Reading:
    """Return what encoder and LLM read of a chat.

    Raises:
        ApiError: 400, for what cannot be read or is above a limit.
    """
    if len(messages) > limits.max_messages:
        raise bad_request(f"Got {len(messages)} messages; at most {limits.max_messages} are taken.", param="messages")
    said = "\n".join(message.text for message in messages if message.role == "user")
    others = [message.text for message in messages if message.role != "user" and message.text.strip()]
    check_text("\n".join([said, *others]), limits, param="messages")
    parts = to_parts(said, model, extension, limits, param="messages")
    if not others:
        return _reading(parts)
    return _reading(parts, prompt="\n".join([*others, *([model.prompt] if model.prompt else [])]))


def read_texts(
    texts: Sequence[str],
    model: ServedModel,
    extension: Extension,
    limits: Limits,
    *,
    param: str,
    max_texts: int | None = None,
) -> list[Reading]:
    """Return what the encoder reads of each text; the LLM reads what the run configured.

    Args:
        texts: of a request.
        model: that is asked.
        extension: of the request.
        limits: of the server.
        param: the request's field of the texts.
        max_texts: another limit of texts than the usual.

    Raises:
        ApiError: 400, for what cannot be read or is above a limit.
    """
    most = limits.max_texts if max_texts is None else max_texts
    if not 1 <= len(texts) <= most:
        raise bad_request(f"Got {len(texts)} texts; wanted 1 to {most}.", param=param)
    readings = []
    for index, text in enumerate(texts):
        place = param if len(texts) == 1 else f"{param}[{index}]"
        check_text(text, limits, param=place)
        readings.append(_reading(to_parts(text, model, extension, limits, param=place)))
    return readings


def to_parts(said: str, model: ServedModel, extension: Extension, limits: Limits, *, param: str) -> tuple[Part, ...]:
    """Return what the encoder reads of what a user says, part by part."""
    if extension.raw:
        if extension.fields is not None:
            raise bad_request("Got both raw and fields; raw text has no fields. Give one.", param="layerbridge")
        return (Part(_filled(said, param), TEXT),)
    template = model.encoder_prompt
    if template is None:
        if extension.fields is not None:
            raise bad_request(f"{model.id!r} was trained on no task, so it has no fields.", param="layerbridge.fields")
        return (Part(_filled(said, param), TEXT),)
    fields = _fields(said, template, extension.fields or {}, limits, param)
    try:
        return prompt_parts(template, fields)
    except DataError as error:
        raise bad_request(f"{_sentence(error)}", param=param) from None


def fields_of(model: ServedModel) -> tuple[str, ...]:
    """Return what a user can say, by name: the fields of the task's prompt."""
    return (TEXT,) if model.encoder_prompt is None else prompt_fields(model.encoder_prompt)


def check_text(text: str, limits: Limits, *, param: str) -> None:
    """Refuse a text that is too long."""
    if len(text) > limits.max_text_characters:
        raise bad_request(
            f"The text has {len(text)} characters; at most {limits.max_text_characters} are taken. Divide it.",
            param=param,
            code="string_above_max_length",
        )


def _fields(said: str, template: str, given: Mapping[str, str], limits: Limits, param: str) -> dict[str, str]:
    wanted = prompt_fields(template)
    unknown = sorted(set(given) - set(wanted))
    if unknown:
        raise bad_request(
            f"Unknown field {unknown[0][:100]!r}; the task's prompt has {', '.join(wanted)}.",
            param="layerbridge.fields",
        )
    for name, value in given.items():
        check_text(value, limits, param=f"layerbridge.fields.{name}")
    open_ones = [name for name in wanted if name not in given]
    if len(open_ones) > 1:
        raise bad_request(
            f"The task's prompt has {len(wanted)} fields ({', '.join(wanted)}) and the text can be one of them. Give "
            "the others as `layerbridge.fields`, or the whole text with `layerbridge.raw`.",
            param="layerbridge.fields",
        )
    if not open_ones and said.strip():
        raise bad_request(
            "layerbridge.fields fills the whole prompt and there is a text besides. Leave one field out, or the text "
            "empty.",
            param="layerbridge.fields",
        )
    return dict(given) | ({open_ones[0]: _filled(said, param)} if open_ones else {})


def _reading(parts: tuple[Part, ...], prompt: str | None = None) -> Reading:
    return Reading(source="".join(part.text for part in parts), prompt=prompt, parts=parts)


def _filled(said: str, param: str) -> str:
    if not said.strip():
        raise bad_request("There is no text for the encoder; wanted at least one character that shows.", param=param)
    return said


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]
