"""SpamAssassin's mails as plain text: subject and body without addresses, links, long numbers and quoted lines."""

from __future__ import annotations

import email
import email.header
import html
import json
import re
import warnings
from collections.abc import Iterator
from email.errors import HeaderParseError
from email.message import Message
from pathlib import Path

LONGEST = 320  # characters, where the pack cuts too
_PREFIX = re.compile(r"^\s*((re|fwd?|aw)\s*:|\[[^\]]*\])\s*", re.IGNORECASE)
_RUDE = re.compile(r"\b(sex\w*|porn\w*|xxx+|nude\w*|naked|viagra|penis|erotic\w*|fuck\w*|teens?|sluts?|cum|orgasm\w*"
                   r"|lesbian\w*|incest|pussy|horny|hardcore|adults? only)\b", re.IGNORECASE)  # fmt: skip


def read_mails(folder: Path) -> Iterator[tuple[str, str]]:
    """(subject, text) of every readable mail in the package's ``data`` folder, in the order of the file names.

    The text is "SUBJECT : BODY", cut at :data:`LONGEST` characters at the end of a word. Mails that a word list
    finds explicit, and those with fewer than 40 characters of body, are left out.
    """
    for path in sorted(folder.glob("*/*.json")):
        message = email.message_from_string(json.loads(path.read_text("utf-8"))["text"].partition("\n")[2])
        subject, body = _subject(message), scrub(_body(message))
        if len(body) >= 40 and not _RUDE.search(f"{subject} {body}"):
            yield subject, cut(f"{subject} : {body}")


def scrub(body: str) -> str:
    """A body on one line: no quoted lines, HTML, boundaries; EMAIL, URL and NUM for what could point at somebody."""
    lines = [line for line in body.splitlines() if not re.match(r"\s*([>|:]|--|On .* wrote:|.* writes?:$)", line)]
    text = re.sub(r"(?is)<(style|script)\b.*?</\1>|<!--.*?-->|<[^>]*>", " ", "\n".join(lines))
    text = html.unescape(text)
    text = re.sub(r"\S+@\S+", "EMAIL", text)
    text = re.sub(r"(?i)(https?|ftp)://\S+|www\.\S+", "URL", text)
    text = re.sub(r"\d{5,}", "NUM", text)
    return re.sub(r"\s+", " ", re.sub(r"[-_=*~#+]{3,}", " ", text)).strip()


def cut(text: str, most: int = LONGEST) -> str:
    """At most so many characters, ending with a whole word."""
    return text if len(text) <= most else text[:most].rpartition(" ")[0] or text[:most]


def _subject(message: Message) -> str:
    try:
        subject = str(email.header.make_header(email.header.decode_header(str(message.get("Subject", "")))))
    except (HeaderParseError, LookupError, UnicodeError):
        subject = str(message.get("Subject", ""))
    while (shorter := _PREFIX.sub("", subject, count=1)) != subject:
        subject = shorter
    return re.sub(r"\s+", " ", scrub(subject)).strip()


def _body(message: Message) -> str:
    """The first part that is plain text, else the first that is HTML."""
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    parts.sort(key=lambda part: part.get_content_subtype() != "plain")
    for part in parts[:1]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = part.get_payload(decode=True)
        if isinstance(content, bytes):
            return content.decode("latin-1")
    return ""
