"""Prompt grammar, as in A1111: `<lora:name:weight>` tags and `(attention:1.2)`. Grammar only, no model.

    resolve(prompt):  parse_tags(prompt) -> TaggedPrompt(text, tags)
    encode(text):     parse_attention(text) -> Segment("red", 1.1), Break(), ...

Both take time linear in the prompt. What A1111 or its extensions would read as other syntax raises
PromptError, so that it never reaches CLIP as plain words; a backslash makes any character literal:
`\\[a|b\\]`, `\\AND`, `16\\:9`, `\\#1`.
"""

from difflora.prompts.attention import Break, Segment, parse_attention
from difflora.prompts.escape import escape
from difflora.prompts.tags import LoraTag, TaggedPrompt, parse_tags, salvage_tags

__all__ = [
    "Break",
    "LoraTag",
    "Segment",
    "TaggedPrompt",
    "escape",
    "parse_attention",
    "parse_tags",
    "salvage_tags",
]
