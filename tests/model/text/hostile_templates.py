"""Renders templates that would run without end or fill memory, under a limit of memory. Run as a program: prints the
seconds that each took and how it ended."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time

BILLION = "1000000000"


def loop(body: str) -> str:
    return "{% for i in range(99999) %}" + body + "{% endfor %}"


def grow(start: str, expression: str) -> str:
    step = expression if expression.startswith("{%") else "{% set ns.s = " + expression + " %}"
    return "{% set ns = namespace(s='" + start + "') %}" + loop(step) + "{{ ns.s|length }}"


HOSTILE = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested ranges, written": "{% for a in range(99999) %}{% for b in range(99999) %}x{{ b }}{% endfor %}{% endfor %}",
    "loops that filter": loop("{% for b in range(99999) if false %}{% endfor %}"),
    "text doubled with +": grow("x", "ns.s + ns.s"),
    "text doubled with ~": grow("x", "ns.s ~ ns.s"),
    "text doubled by format": grow("x", "'%s%s' % (ns.s, ns.s)"),
    "text doubled by the filter": grow("x", "'%s%s'|format(ns.s, ns.s)"),
    "text doubled by str.format": grow("x", "'{0}{0}'.format(ns.s)"),
    "text doubled by format_map": grow("x", "'{a}{a}'.format_map({'a': ns.s})"),
    "text doubled by join": grow("x", "[ns.s, ns.s]|join"),
    "text doubled by str.join": grow("x", "ns.s.join(['a', 'b', 'c', ns.s])"),
    "text doubled by replace": grow("xx", "ns.s|replace('x', ns.s)"),
    "text doubled by str.replace": grow("xx", "ns.s.replace('', ns.s)"),
    "text doubled by a block": grow("x", "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}"),
    "text doubled by a macro": "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}" + grow("x", "m(ns.s)"),
    "text doubled by repr": "{% set ns = namespace(s=['\\x00\"']) %}" + loop("{% set ns.s = [ns.s|string] %}"),
    "text doubled by JSON": grow('\\"', "ns.s|tojson"),
    "lists doubled": "{% set ns = namespace(l=[1]) %}" + loop("{% set ns.l = ns.l + ns.l %}"),
    "lists of lists": "{% set ns = namespace(l=[1]) %}" + loop("{% set ns.l = [ns.l, ns.l] %}") + "{{ ns.l }}",
    "tuples as keys": "{% set ns = namespace(l=(1,)) %}" + loop("{% set ns.l = (ns.l, ns.l) %}{{ {ns.l: 1}|length }}"),
    "dicts of dicts": "{% set ns = namespace(l={}) %}" + loop("{% set ns.l = dict(a=ns.l, b=ns.l) %}") + "{{ ns.l }}",
    "namespaces of namespaces": "{% set ns = namespace(l=1) %}"
    + loop("{% set ns.l = namespace(l=[ns.l, ns.l]) %}")
    + "{{ ns.l }}" * 1000,
    "lists compared": "{% set ns = namespace(l=[1], m=[1]) %}"
    + "{% for i in range(18) %}{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}"
    + loop("{{ ns.l == ns.m }}"),
    "deep lists": "{% set ns = namespace(l=[]) %}" + loop("{% set ns.l = [ns.l] %}") + "{{ ns.l|tojson }}",
    "filters of filters": "{% set ns = namespace(l=[1]) %}" + loop("{% set ns.l = ns.l|map('string') %}" * 9),
    "slices kept": "{% set ns = namespace(s='x' * 999999, l=[]) %}" + loop("{% set ns.l = ns.l + [ns.s[1:]] %}"),
    "'x' * n": "{{ 'x' * @N@ }}",
    "n * 'x'": "{{ @N@ * 'x' }}",
    "n * n * 'x'": "{{ (99999 * 99999) * 'x' }}",
    "[x] * n": "{{ ([1] * @N@)|length }}",
    "a power": "{{ 10 ** @N@ }}",
    "a power of a power": "{{ 10 ** 99 ** 99 ** 99 }}",
    "squares": "{% set ns = namespace(n=10) %}" + loop("{% set ns.n = ns.n * ns.n %}"),
    "squares by filters": "{% set ns = namespace(n='f') %}"
    + loop("{% set ns.n = ((ns.n|int(0, 16))|string) ~ ns.n %}"),
    "lipsum": "{{ lipsum(n=100000) }}",
    "tojson(indent=n)": "{{ [[1]]|tojson(indent=@N@) }}",
    "tojson(indent='...')": "{{ [[[[[[1]]]]]]|tojson(indent=' ' * 9000000) }}",
    "tojson(separators)": "{{ range(9999)|list|tojson(separators=('x' * 1000000, ':')) }}",
    "tojson deep": "{% set ns = namespace(l=[1]) %}{% for i in range(900) %}{% set ns.l = [ns.l, 1] %}{% endfor %}"
    + loop("{{ ns.l|tojson(indent=9999) }}"),
    "center filter": "{{ 'x'|center(@N@) }}",
    "center method": "{{ 'x'.center(@N@) }}",
    "ljust": "{{ 'x'.ljust(@N@) }}",
    "zfill": "{{ '1'.zfill(@N@) }}",
    "expandtabs": "{{ '\\t'.expandtabs(@N@) }}",
    "to_bytes": "{{ (1).to_bytes(@N@, 'big') }}",
    "encode": "{{ 'x'.encode('utf-8').center(@N@) }}",
    "translate": "{{ 'xxxx'.translate({120: 'y' * 10000000}) }}",
    "indent filter": "{{ 'x\\ny'|indent(@N@) }}",
    "indent filter by text": "{{ ('x\\n' * 9999)|indent('y' * 1000000) }}",
    "indent filter of other lines": "{{ ('\\x0b' * 99999)|indent(999999) }}",
    "wordwrap": "{{ ('x ' * 1000000)|wordwrap(1, wrapstring='y' * 100000) }}",
    "batch": "{{ [1]|batch(@N@, 'x')|list|length }}",
    "slice": "{{ [1]|slice(@N@)|list|length }}",
    "round": "{{ 5|round(-@N@) }}",
    "round by hand": "{{ 5.5|round(@N@, 'floor') }}",
    "a width in %": "{{ '%@N@d' % 1 }}",
    "a width in % from an argument": "{{ '%*d' % (@N@, 1) }}",
    "a precision in %": "{{ '%.@N@f' % 1.0 }}",
    "a precision in % from an argument": "{{ '%.*f' % (@N@, 1.0) }}",
    "a width in the filter": "{{ '%@N@d'|format(1) }}",
    "a width in str.format": "{{ '{:@N@d}'.format(1) }}",
    "a nested width in str.format": "{{ '{:{}d}'.format(1, @N@) }}",
    "a width in map": "{{ ['x']|map('center', @N@)|list }}",
    "batch by name": "{{ [1]|batch(fill_with='x', linecount=@N@)|list|length }}",
    "slice by name": "{{ [1]|slice(slices=@N@)|list|length }}",
    "center by name": "{{ 'x'|center(width=@N@) }}",
    "expandtabs by name": "{{ '\\t'.expandtabs(tabsize=@N@) }}",
    "many pieces of ~": "{% set s = 'x' * 9999999 %}{{ (" + "s ~ " * 9999 + "s)|length }}",
    "a width in a test": "{{ '%@N@d' is odd }}",
    "a width in a test with an argument": "{{ '%@N@d' is divisibleby 3 }}",
    "text that is rounded": "{{ 'x'|round(9, 'floor') }}",
    "a list as a separator": "{{ range(9999)|list|join(range(99999)|list) }}",
    "tuples that macros get, as keys": "{% set ns = namespace(l=(1,)) %}{% macro m() %}{% set ns.l = varargs %}"
    "{% endmacro %}{% for i in range(40) %}{{ m(ns.l, ns.l) }}{% endfor %}{{ {ns.l: 1}|length }}",
    "tuples that macros get, replaced in": "{% set ns = namespace(l=(1,)) %}{% macro m() %}{% set ns.l = varargs %}"
    "{% endmacro %}{% for i in range(40) %}{{ m(ns.l, ns.l) }}{% endfor %}{{ ns.l|replace('a', 'b') }}",
    "tuples that cyclers hold": "{% set ns = namespace(l=(1,)) %}{% for i in range(40) %}"
    "{% set ns.l = cycler(ns.l, ns.l).items %}{% endfor %}{{ [ns.l]|unique|list }}",
    "sums of lists": "{{ range(99999)|map('string')|map('list')|list|sum(start=[])|length }}",
    "fields of one argument": "{{ ('{0}' * 99999).format('x' * 999999) }}",
    "%(fields)s of one argument": "{{ ('%(a)s' * 99999) % {'a': 'x' * 999999} }}",
    "dict.update": "{% set d = {} %}{{ dict.update(d, a=d) }}",
    "dict.fromkeys": "{{ dict.fromkeys(range(99999), 'x') }}" * 99,
    "splits": "{{ ('x ' * 9999999).split() }}",
    "lists of text": "{{ ('x' * 9999999)|list }}",
    "macros without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macros that branch": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "callers without end": "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}",
    "blocks without end": "{% block b %}{{ self.b() }}{% endblock %}",
    "loops without end": "{% for x in [[]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "strftime": "{{ strftime_now('%Y' * 9999999) }}",
    "deep source": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "long source": "{{ a }}" * 100_000,
    "a constant block": "{% autoescape 'x'|center(999999999) %}{% endautoescape %}",
    "constants": "{{ ['x', 'y']|join('z' * 999999999) }}",
}


def main() -> None:
    from pybatch.model.text.chat_template import render

    render("{{ messages }}", [], {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 29), size + (1 << 29)))
    ended: dict[str, object] = {}

    def run() -> None:
        for name, template in HOSTILE.items():
            begin = time.thread_time()
            try:
                template = template.replace("@N@", BILLION)
                said = f"rendered {len(render(template, [], {})):,} characters"
            except ValueError as error:
                said = f"ValueError: {str(error)[:200]}"
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            ended[name] = (time.thread_time() - begin, said)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    json.dump({"ended": ended, "grown": grown}, sys.stdout)


if __name__ == "__main__":
    main()
