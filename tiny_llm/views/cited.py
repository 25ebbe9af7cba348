"""An answer from documents: lines on its sources for a reader, and data for `--json`."""

from typing import Any

from tiny_llm.apps.rag.assistant import RagAnswer


def source_lines(reply: RagAnswer) -> list[str]:
    """Return a line for each passage: its number, its source, and how far it supports what it is cited for."""
    lines = []
    for number, hit in enumerate(reply.hits, 1):
        chunk = hit.chunk
        page = "" if chunk.page is None else f"page {chunk.page}"
        parts = [part for part in (chunk.title, chunk.source, page) if part]
        overlaps = [citation.overlap for citation in reply.citations if citation.number == number]
        cited = f": has {min(overlaps):.0%} of the words it is cited for" if overlaps else ""
        lines.append(f"[{number}] {', '.join(parts)}{cited}")
    return lines


def cited_data(reply: RagAnswer) -> dict[str, Any]:
    """Return the answer for JSON."""
    passages = []
    for number, hit in enumerate(reply.hits, 1):
        chunk = hit.chunk
        place = {"source": chunk.source, "title": chunk.title, "page": chunk.page}
        passages.append({"number": number, **place, "score": hit.score, "text": chunk.text})
    return {
        "answer": reply.text,
        "refused": reply.refused,
        "query": reply.query,
        "coverage": reply.coverage,
        "passages": passages,
        "citations": [citation._asdict() for citation in reply.citations],
        "seconds": reply.seconds,
        "prompt_tokens": reply.prompt_tokens,
        "cached_tokens": reply.cached_tokens,
    }
