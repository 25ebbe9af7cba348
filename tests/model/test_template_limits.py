"""A hostile chat template ends soon, in little memory, with an error that names where it came from."""

import gc
import multiprocessing
import resource
import sys
import time
from typing import Any

import pytest

from tests.support import FIXTURES, make_tokenizer
from tiny_llm.model.tokenizer import Tokenizer

SECONDS, MEGABYTES = 2.0, 200
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
DOUBLED = (
    "{% set ns = namespace(x=[1], y=[1]) %}"
    "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
)
BIG = "{% set big = 'x' * 1000000 %}"
LONG = "{% set long = range(99999) | list %}"
HOSTILE = {
    "texts": [
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * 'a' }}",
        "{{ [1] * 10**9 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% autoescape true %}{{ ('<' | escape) * 10**10 }}{% endautoescape %}",
        "{% for i in range(99999) %}" + "text" * 20_000 + "{% endfor %}",
        "{% set y %}{% for i in range(99999) %}" + "text" * 20_000 + "{% endfor %}{% endset %}",
        "{% macro m() %}" + "text" * 20_000 + "{% endmacro %}{% for i in range(9999) %}{{ m() }}{% endfor %}",
        BIG + "{% for i in range(9999) %}{{ big }}{% endfor %}",
        BIG + "".join(f"{{% set v{i} = big[1:] %}}" for i in range(2000)),
        LONG + "".join(f"{{% set v{i} = long[:] %}}" for i in range(2000)),
    ],
    "filters": [
        "{{ messages | tojson(indent=10**9) }}",
        "{{ messages | tojson(false, 10**9) }}",
        BIG + "{{ messages | tojson(separators=(big, big)) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ 'a' | indent(10**10, true) }}",
        BIG + "{{ big | replace('x', big) }}",
        BIG + "{{ big | replace('', big) }}",
        BIG + "{{ range(99999) | join(big) }}",
        "{{ range(99999) | map('center', 9999) | join }}",
        "{{ ('x' * 9000000) | list | length }}",
        "{{ ('ab ' * 6000000) | wordcount }}",
        "{{ [1] | batch(10**9, 0) | list }}",
        "{{ [1] | slice(10**9) | list }}",
        "{{ 1.5 | round(10**9, 'ceil') }}",
        "{{ ([[1]] * 99999) | sum(start=[]) }}",
        LONG + "{{ range(99999) | select('in', long) | list }}",
        LONG + "{% for i in range(99999) %}{% set c = long | sort %}{% endfor %}",
        "{{ lipsum(n=10**9) }}",
        "{{ ('www.' * 1000000) | urlize }}",
        "{{ ('<!--' * 1000000) | striptags }}",
        "{{ ('a b' * 1000000) | wordwrap(1) }}",
    ],
    "methods": [
        "{{ 'a'.center(10**10) }}",
        "{{ 'a'.zfill(10**10) }}",
        "{{ ('\\t' * 100000).expandtabs(10**6) }}",
        BIG + "{{ big.replace('x', big) }}",
        BIG + "{{ big.join('y' * 99999) }}",
        BIG + "{{ big.translate({120: big}) }}",
        "{{ ('ab ' * 6000000).split() }}",
        "{{ ('a\\n' * 6000000).splitlines() }}",
        "{{ (5).to_bytes(10**9, 'big') }}",
        "{{ 'a'.encode('utf-16') }}",
        "{{ strftime_now('%Y' * 10**7) | length }}{{ 1 / 0 }}",
        "{{ dict.fromkeys(range(99999)) }}",
    ],
    "formats": [
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '%.1000000000f' | format(1.0) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10**9) }}",
        "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
        "{{ ('{:1000000000}' | attr('format'))(1) }}",
        BIG + "{{ ('%(a)s' * 10000) % {'a': big} }}",
        BIG + "{{ ('{0}' * 10000).format(big) }}",
    ],
    "loops": [
        "{% for i in range(10**12) %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% set c = cycler(1, 2) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set x = c.next() %}"
        "{% endfor %}{% endfor %}",
        LONG + "{% for i in long %}{% if -1 in long %}{% endif %}{% endfor %}",
    ],
    "recursion": [
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% for i in range(9) recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{{ messages" + ".a" * 45_000 + " }}",
        "{{ " + "(" * 45_000 + "1" + ")" * 45_000 + " }}",
        "{{ " + "1 + " * 20_000 + "1 }}",
        "{{ 1" + " | abs" * 15_000 + " }}",
        "{% if 1 %}" * 1_200 + "{% endif %}" * 1_200,
        "{% for a in range(9) %}" * 1_200 + "{% endfor %}" * 1_200,
    ],
    "numbers": [
        "{{ 10**(10**9) }}",
        "{{ (10**2000) ** 2000 }}",
        "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    ],
    "shared lists": [
        DOUBLED + "{{ ns.x }}",
        DOUBLED + "{{ ns.x | tojson }}",
        DOUBLED + "{{ ns.x | string | length }}",
        DOUBLED + "{{ ns.x ~ '' }}",
        DOUBLED + "{{ '%s' % [ns.x] }}",
        DOUBLED + "{{ '{}{!r}'.format(ns.x, ns.x) }}",
        DOUBLED + "{{ ns.x == ns.y }}",
        DOUBLED + "{{ ns.x is eq(ns.y) }}",
        DOUBLED + "{{ [ns.x].index(ns.y) }}",
        DOUBLED + "{{ [ns.x, ns.y] | sort }}",
        DOUBLED + "{{ ns }}",
        DOUBLED + "{{ raise_exception(ns.x) }}",
        "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
        "{{ {ns.x: 1} }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    ],
    "long sources": ["{{ x }}" * 14_000, "x" * 200_000, "{% set a = 1 %}" * 6_000],
}


MEGABYTE = 1024 * (1024 if sys.platform == "darwin" else 1)


def highest() -> int:
    """The most memory that this process ever had, in the system's own unit."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


AT_START = highest()


def tokenizer(template: str) -> Tokenizer:
    return Tokenizer(make_tokenizer(), frozenset(), {"default": template}, source="models/evil")


def outcome(template: str) -> tuple[str, float, float]:
    """How a rendering ends, in seconds, and how many megabytes more the process ever had than at its start."""
    evil = tokenizer(template)
    gc.collect()
    start = time.perf_counter()
    try:
        ending = f"a text of {len(evil.render(CHAT))} characters"
    except ValueError as error:
        ending = str(error)
    seconds = time.perf_counter() - start
    return ending, seconds, (highest() - AT_START) / MEGABYTE


ENDINGS = ("models/evil: the chat template was stopped: ", "models/evil: the chat template failed: ")


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.timeout(300)
def test_a_hostile_template_ends_soon_and_stays_small(kind: str) -> None:
    """In another process, whose memory can be measured and which can be ended."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        for template in HOSTILE[kind]:
            ending, seconds, megabytes = pool.apply_async(outcome, (template,)).get(timeout=30)
            if seconds > SECONDS:  # something else may have had the processor
                ending, seconds, megabytes = pool.apply_async(outcome, (template,)).get(timeout=30)
            assert ending.startswith(ENDINGS), template[:200]
            assert seconds < SECONDS and megabytes < MEGABYTES, (template[:200], seconds, megabytes)


@pytest.mark.parametrize("template", ["qwen3.jinja", "qwen2.5.jinja"])
@pytest.mark.parametrize(("count", "length"), [(3000, 300), (2, 2_000_000)])
def test_a_long_conversation_is_within_the_limits(template: str, count: int, length: int) -> None:
    chat: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": "word " * (length // 5)} for i in range(count)
    ]
    text = (FIXTURES / template).read_text(encoding="utf-8")
    assert len(tokenizer(text).render(chat)) > count * length


def test_what_templates_do_all_the_time_still_works() -> None:
    template = (
        "{% set ns = namespace(x=[], n=0) %}{% for m in messages %}{% set ns.x = ns.x + [m.role] %}"
        "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.x | join(',') }}|{{ ns.n }}|{{ '%s-%02d' % ('a', 3) }}|"
        "{{ '{:>3}'.format('b') }}|{{ messages | map(attribute='content') | list | tojson }}|"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ 'a\nb' | indent(2) }}|"
        "{{ ('x' * 3).center(5) }}|{{ messages[1:] | length }}|{{ 'a b'.split() | last }}|{{ [3, 1] | sort }}|"
        "{{ {'b': 1, 'a': 2} | dictsort }}|{{ 'a' in ['a'] }}|{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}"
        "{% endfor %}|{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 3 }}|{% for i in [1, 2, 3] if i > 1 %}{{ loop.index }}{{ i }}"
        "{{ loop.last }}{% endfor %}|{{ 'ab' | replace('a', 'c') | upper | trim }}"
    )
    assert tokenizer(template).render(CHAT) == (
        "user,assistant|2|a-03|  b|[\"hi\", \"ho\"]|1|a\n  b| xxx |1|b|[1, 3]|[('a', 2), ('b', 1)]|True|x1|338|"
        "12False23True|CB"
    )
