"""The look at a folder of images before a training: what is in it, what is wrong, and captions to change."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from typing import Any

import gradio as gr
import pandas as pd
from gradio.components import Component
from PIL import Image

from difflora import DiffloraError, Survey, configure, survey
from webui.following import notice, problem
from webui.shared import Shared
from webui.uploads import PICTURES, taken, write_caption

THUMBNAIL = 192
SHOWN_IMAGES = 200


def folder(shared: Shared) -> tuple[Component, gr.UploadButton, gr.Button]:
    """The widgets that name a folder, bring one, and ask for a look at it."""
    data = gr.Textbox(
        shared.settings.data,
        label="Folder of images on this computer",
        info="With a caption in a .txt beside each image.",
        elem_id="data",
    )
    with gr.Row(equal_height=True):
        upload = gr.UploadButton(
            "Upload images and captions", file_count="multiple", file_types=[*PICTURES, ".txt"], size="sm"
        )
        check = gr.Button("Check the images", size="sm", elem_id="check")
    return data, upload, check


def build(
    shared: Shared,
    base: Component,
    *,
    data: Component,
    trigger: Component,
    upload: gr.UploadButton,
    check: gr.Button,
) -> None:
    """What is found in the folder `data`, after `upload` or `check`."""
    report = gr.HTML(elem_id="survey")
    images = gr.Gallery(
        label="Images", columns=6, height=240, interactive=False, visible=False, elem_id="images", buttons=[]
    )
    table = gr.Dataframe(
        headers=["image", "caption"],
        datatype=["str", "str"],
        interactive=True,
        visible=False,
        wrap=True,
        column_widths=["25%", "75%"],
        max_height=260,
        label="Captions: change one, then save",
        elem_id="captions",
    )
    save = gr.Button("Save the captions", size="sm", visible=False, elem_id="save-captions")
    looked_at = gr.State("")

    def look(request: gr.Request, data: str, trigger: str, base: str) -> list[Any]:
        try:
            found = _found(shared, request, data, trigger=trigger, base=base)
            every = found if trigger or not found.refusal else _every(shared, request, data, base)
        except DiffloraError as error:
            return [problem(error), *[gr.update(visible=False)] * 3, ""]
        rows = [[item.name, item.caption] for item in every.items]
        return [
            told(found),
            gr.update(value=_thumbnails(shared, every), visible=bool(rows)),
            gr.update(value=rows, visible=bool(rows)),
            gr.update(visible=bool(rows)),
            data,
        ]

    def on_upload(request: gr.Request, files: list[str] | None, trigger: str, base: str) -> list[Any]:
        try:
            place = str(taken(files or [], shared.uploads(shared.owner(request))))
        except DiffloraError as error:
            return [gr.skip(), problem(error), *[gr.skip()] * 4]
        return [place, *look(request, place, trigger, base)]

    def on_save(request: gr.Request, data: str, base: str, rows: pd.DataFrame) -> str:
        try:
            found = _every(shared, request, data, base)
            return save_captions(found, dict(zip(rows["image"], rows["caption"], strict=True)))
        except DiffloraError as error:
            return problem(error)

    seen = [report, images, table, save, looked_at]
    check.click(look, [data, trigger, base], seen, api_visibility="private")
    upload.upload(on_upload, [upload, trigger, base], [data, *seen], api_visibility="private")
    save.click(on_save, [looked_at, base, table], report, api_visibility="private")


def _found(shared: Shared, request: gr.Request, data: str, *, trigger: str, base: str) -> Survey:
    """Raises DiffloraError if the folder, the base or the trigger cannot be used."""
    shared.require_readable(data, shared.owner(request))
    resolution = shared.outline(base).facts.resolution
    values = {"data": data, "trigger": trigger, "base_model": base, "name": "x", "output": "x"}
    return survey(configure({**values, "steps": 1}), resolution=resolution)


def _every(shared: Shared, request: gr.Request, data: str, base: str) -> Survey:
    """The same of all images, also of those that could not be learned for want of a caption."""
    return _found(shared, request, data, trigger="any", base=base)


def save_captions(found: Survey, captions: Mapping[str, str]) -> str:
    """Writes the captions that differ from those in the folder; tells how many, as HTML.

    Names that are not in the folder are none of its images. Raises UploadError on a caption that is too long.
    """
    changed = 0
    for item in found.items:
        caption = " ".join(str(captions.get(item.name, item.caption)).split())
        if caption != item.caption and not item.path.is_symlink():
            write_caption(item.path, caption)
            changed += 1
    return notice("1 caption written" if changed == 1 else f"{changed} captions written")


def told(found: Survey) -> str:
    """A survey as HTML; names of files are text in it."""
    lines = []
    if found.items:
        sizes = Counter(item.size for item in found.items)
        (least, most) = (f"{w}×{h}" for w, h in (min(sizes, key=_area), max(sizes, key=_area)))
        between = f"of {least}" if len(sizes) == 1 else f"from {least} to {most}"
        buckets = ", ".join(f"{count} of {w}×{h}" for (w, h), count in found.buckets.items())
        lines.append(f"<b>{len(found.items)} images</b> {between}, in buckets: {buckets}.")
        bare = sum(not item.caption for item in found.items)
        if bare:
            lines.append(f"{bare} have no caption: they are learned with the trigger alone.")
    lines += [f"The same picture: {html.escape(', '.join(names))}." for names in found.duplicates]
    if found.blown_up:
        worst = max(found.blown_up.values())
        lines.append(
            f"{len(found.blown_up)} are enlarged, up to {worst:.1f} times: larger ones learn better."
        )
    if found.ignored:
        lines.append(f"{len(found.ignored)} other files are not used.")
    wrong = notice(html.escape(found.refusal), is_error=True) if found.refusal else ""
    return notice("".join(f"<div>{line}</div>" for line in lines)) + wrong


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _thumbnails(shared: Shared, found: Survey) -> list[tuple[str, str]]:
    """Small copies that the page may serve, each with its caption."""
    place = shared.private("thumbnails")
    pictures = []
    for item in found.items[:SHOWN_IMAGES]:
        target = place / f"{item.sha256[:24]}.jpg"
        if not target.exists():
            with Image.open(item.path) as image:
                small = image.convert("RGB")
                small.thumbnail((THUMBNAIL, THUMBNAIL))
                small.save(target, quality=88)
        pictures.append((str(target), item.caption))
    return pictures
