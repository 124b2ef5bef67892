"""Small templates, one idea each, that make_chat_template.py renders with transformers' jinja2 environment."""

VARIABLES = {
    "s": "Hello, World", "u": "Straße ÉTÉ ǆ Σίσυφος ΟΔΟΣ ﬁn", "ws": " \t\n x \u00a0\u3000", "empty": "", "n": 7, "neg": -3, "f": 2.5,
    "big": 1e22, "small": 1e-7, "t": True, "none_value": None, "list": [3, 1, 2], "words": ["pear", "Apple", "fig", "apple"],
    "d": {"b": 1, "a": "x", "C": None, "items": "shadow"}, "nested": {"a": {"b": [{"c": 1}, {"c": 2}]}},
    "rows": [{"k": "x", "v": 1}, {"k": "y", "v": 0}, {"k": "x"}], "html": "<a href=\"x\">'&'</a>", "lines": "a\nb\r\nc\u2028d\n",
    "quote1": "it's", "quote2": "say \"x\"", "quote3": "it's \"x\"", "esc": "\\ \n\t\r\x01\x7f\u00a0é\u200b", "uni": "añ👍字",
}

SNIPPETS = [
    # white space
    "  {% if t %}\n  x\n  {% endif %}\n", "a\n  {%- if t %}  b  {%- endif %}\n c", "{% if t -%}\n\n  x {% endif %} y", "a {{- ' b ' -}} c",
    "  {%+ if t %}x{% endif +%}\ny", "x{# c #}\ny", "  {# c #}\n  y", "a\n  {#- c -#}\n  b", "{{ s }}\n", "{{ s }}\n\n", "\n{{ s }}", "a\r\nb\r\n",
    "{% raw %}{{ x }}\n{% endraw %}\nz", "  {%- raw -%}  {% x %} {%- endraw -%}  y", "{% raw %}\na{% endraw %}b", "  {% raw %}  x\n  {% endraw %}\n y",
    "{% for i in list %}\n  {{ i }}\n{% endfor %}\n", "\t{% set x = 1 %}\n{{ x }}", "a  {% set x = 1 %}  b", "{{ 1 }}  {% set x = 1 %}\n b", "{{+ n }}",
    # literals
    "{{ 'a' 'b' \"c\" }}", r"{{ 'a\n\t\\\'\"\x41\u00e9\U0001f600\101\q' }}", "{{ 1_000 }} {{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1.5e3 }} {{ 1e2 }} {{ 3.0 }}",
    "{{ [1, 'a', none, true, 2.5, []] }}", "{{ {'a': 1, 'b': [1]} }}", "{{ (1,) }} {{ (1, 2) }} {{ () }}", "{{ 1, 2 }}", "{{ [] }}{{ {} }}", "{{ true }}{{ True }}{{ none }}{{ None }}",
    "{{ {'a': {'b': {}}} }}", "{{ [quote1, quote2, quote3, esc, uni] }}", "{{ big }} {{ small }} {{ 1e16 }} {{ 1e15 }} {{ 0.0001 }} {{ 123456.789 }} {{ -0.0 }} {{ 1e300 }}",
    # operators
    "{{ 1 + 2 * 3 - 4 / 2 }}", "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}", "{{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 2 ** -1 }}",
    "{{ 'a' ~ 1 ~ none ~ true }}", "{{ 'ab' * 3 }} {{ 2 * [1] }}", "{{ [1] + [2] }}", "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }}", "{{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' == 'a' }} {{ [1] == [1] }}",
    "{{ 'a' in 'abc' }} {{ 2 in list }} {{ 'b' in d }} {{ 9 not in list }} {{ 'z' not in 'abc' }}", "{{ not t }} {{ not not t }} {{ t and n }} {{ empty or 'x' }} {{ none_value and 1 }}",
    "{{ 'yes' if t else 'no' }} {{ 'yes' if not t }}|", "{{ 1 if 0 else 2 if 0 else 3 }}", "{{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }}", "{{ 'a' + 1 }}", "{{ 1 + 'a' }}", "{{ 1 / 0 }}", "{{ 'x=%s y=%d %%' % ('a', 3) }}",
    "{{ -n }} {{ +n }} {{ - n + 1 }}", "{{ {'a':1} == {'a':1.0} }} {{ {'a':1,'b':2} == {'b':2,'a':1} }}", "{{ 3 * 'a' ~ 'b' }}", "{{ 1 ~ 2 + 3 }}", "{{ 'b' in ['a', 'b'] and 'c' not in 'd' }}", "{{ none in [none] }}",
    "{{ true + true }}", "{{ [1,2] in [[1,2]] }}", "{{ 'a' if undefined_name else 'b' }}", "{{ 5 in 'a5' }}", "{{ undefined_name in list }}", "{{ 1 in undefined_name }}",
    # access
    "{{ d.b }} {{ d['a'] }} {{ d.copy().a }}", "{{ d['items'] }}", "{{ d.missing }}|{{ d['missing'] }}|", "{{ d.missing.more }}", "{{ undefined_name }}|", "{{ undefined_name.x }}", "{{ list[0] }} {{ list[-1] }} {{ list[9] }}|",
    "{{ nested.a.b[1].c }} {{ nested['a']['b'][0]['c'] }}", "{{ s[0] }} {{ s[-1] }} {{ uni[2] }} {{ s[99] }}|", "{{ list.0 }}", "{{ s.x }}|", "{{ n.x }}|", "{{ none_value.x }}|", "{{ none_value['x'] }}|",
    "{{ s[1:4] }} {{ s[:3] }} {{ s[-5:] }} {{ s[::-1] }} {{ s[::2] }} {{ s[5:1:-1] }} {{ s[10:2] }}|", "{{ uni[1:3] }} {{ uni[::-1] }}", "{{ list[1:] }} {{ list[::-1] }} {{ list[:-1] }} {{ list[-100:100] }}", "{{ list[::0] }}",
    "{{ d.get('b') }} {{ d.get('zz') }} {{ d.get('zz', 5) }}", "{{ d.keys()|list }} {{ d.values()|list }} {{ d.items()|list }}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{{ d.__class__ }}", "{{ ''.__class__.__mro__ }}",
    "{{ d.update({'x': 1}) }}", "{{ list.append(1) }}", "{{ messages.__class__ }}", "{{ undefined_name() }}", "{{ n() }}", "{{ s.nope() }}",
    # statements
    "{% for x in list %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}", "{% for x in [] %}x{% else %}none{% endfor %}",
    "{% for x in list if x > 1 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% endfor %}", "{% for x in list %}{{ loop.previtem }}-{{ loop.nextitem }},{% endfor %}", "{% for x in list %}{% if loop.index == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in list %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in list %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for x in [1,1,2] %}{{ loop.changed(x) }}{% endfor %}", "{% for c in uni %}[{{ c }}]{% endfor %}",
    "{% for k in d %}{{ k }}{% endfor %}", "{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{% endfor %}", "{% for x in n %}{% endfor %}", "{% for x in undefined_name %}x{% else %}e{% endfor %}", "{% for x in none_value %}{% endfor %}",
    "{% set x = 1 %}{% for i in list %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}", "{% set ns = namespace(x=1) %}{% for i in list %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "{% set ns = namespace() %}{{ ns.y }}|{% set ns.y = 2 %}{{ ns.y }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set x %}a{{ n }}b{% endset %}{{ x }}", "{% set x | upper | replace('A', 'Z') %}a{{ n }}b{% endset %}{{ x }}", "{% if n == 1 %}a{% elif n == 7 %}b{% else %}c{% endif %}", "{% if t %}{% set q = 1 %}{% endif %}{{ q }}",
    "{% macro m(a, b='B') %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=3, a=4) }}{{ m() }}", "{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(4) }}", "{% macro m() %}{{ g }}{% endmacro %}{% set g = 5 %}{{ m() }}",
    "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}in{{ n }}{% endcall %}", "{% macro m() %}{% for i in list %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(x) m() %}({{ x }}){% endcall %}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% filter upper %}abc{{ s }}{% endfilter %}", "{% with x = 3, y = n %}{{ x }}{{ y }}{% endwith %}{{ x }}|", "{% for x in nested.a.b recursive %}{{ x.c }}{% if loop.depth < 3 %}({{ loop([{'c': 9}]) }}){% endif %}{% endfor %}", "{% generation %}{{ s }}{% endgeneration %}!",
    "{% generation %}{% set x = 1 %}{% endgeneration %}{{ x }}|", "{{ raise_exception('no ' ~ n) }}", "{% if false %}{{ raise_exception('x') }}{% endif %}ok", "{{ strftime_now('%d %b %Y') }}", "{{ strftime_now('%Y-%m-%d %H:%M:%S %A %j') }}", "{{ range(3)|list }} {{ range(1, 7, 2)|list }} {{ range(3, 0, -1)|list }}",
    "{{ dict(a=1, b='x') }}", "{{ namespace(a=1).a }}", "{{ range(1000000)|list|length }}", "{{ messages }} {{ tools }} {{ documents }} {{ add_generation_prompt }} {{ bos_token }}{{ eos_token }}", "{% set messages = 5 %}{{ messages }}", "{% for i in range(3) %}{% for j in range(2) %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% macro m(l) %}{% for x in l %}{{ loop.index }}{% endfor %}{% endmacro %}{% for y in list %}{{ m(list) }}{{ loop.index }} {% endfor %}", "{% set x = 1 %}{% if t %}{% set x = 2 %}{% endif %}{{ x }}", "{% set x = 1 %}{% macro m() %}{% set x = 3 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}", "{% for x in list %}{% else %}{% endfor %}{{ x }}|",
    # filters
    "{{ ws|trim }}|{{ '--x-'|trim('-') }}", "{{ s|upper }} {{ s|lower }} {{ 'heLLo wORLD-x (y'|title }} {{ 'heLLo'|capitalize }}", "{{ u|upper }} {{ u|lower }} {{ u|capitalize }} {{ u.title() }} {{ u|title }}", "{{ s|replace('l', 'L') }} {{ s|replace('l', 'L', 1) }} {{ 'aaa'|replace('', '-') }}",
    "{{ list|join(', ') }} {{ list|join }} {{ rows|join('/', attribute='k') }}", "{{ list|length }} {{ s|length }} {{ uni|length }} {{ d|length }} {{ undefined_name|length }}", "{{ list|first }} {{ list|last }} {{ []|first }}| {{ s|first }}{{ s|last }}", "{{ list|sort }} {{ list|sort(reverse=true) }} {{ words|sort }} {{ words|sort(case_sensitive=true) }}",
    "{{ words|unique|list }} {{ [1, 2, 1]|unique|list }}", "{{ list|reverse|list }} {{ s|reverse }}", "{{ list|min }} {{ list|max }} {{ list|sum }} {{ rows|sum(attribute='v') if false else 1 }}", "{{ d|dictsort }} {{ d|items|list }}", "{{ rows|map(attribute='k')|list }} {{ list|map('string')|list }} {{ rows|map(attribute='v', default='-')|list }}",
    "{{ rows|selectattr('v')|list }} {{ rows|selectattr('v', 'defined')|list|length }} {{ rows|rejectattr('k', 'equalto', 'x')|list }}", "{{ list|select('odd')|list }} {{ list|reject('gt', 1)|list }} {{ [0, 1]|select|list }}", "{{ words|map('upper')|join(' ') }} {{ words|map('replace', 'a', 'A')|list }}",
    "{{ undefined_name|default('x') }} {{ empty|default('x') }}| {{ empty|default('x', true) }} {{ none_value|d('y') }}", "{{ d|tojson }} {{ nested|tojson }} {{ [1, 2.5, none, true, 'é\"']|tojson }}", "{{ d|tojson(indent=2) }}", "{{ nested|tojson(indent=4) }} {{ []|tojson(indent=2) }}", "{{ html|tojson }} {{ esc|tojson }} {{ uni|tojson(ensure_ascii=true) }}",
    "{{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }} {{ [1, 2]|tojson(separators=(',', ':')) }}", "{{ {1: 2, none: 3, true: 4}|tojson }}", "{{ undefined_name|tojson }}", "{{ big|tojson }} {{ 1.0|tojson }} {{ small|tojson }}", "{{ 'a\nb\n\nc'|indent }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\n\nb'|indent(2, blank=true) }}|{{ 'a\n'|indent(1) }}|{{ lines|indent('> ') }}",
    "{{ '42'|int }} {{ 'x'|int }} {{ 'x'|int(5) }} {{ 3.9|int }} {{ '3.7'|int }} {{ '2.5'|float }} {{ 'x'|float }} {{ true|int }}", "{{ 2.5|round }} {{ 3.14159|round(2) }} {{ 2.1|round(0, 'ceil') }} {{ 2.9|round(method='floor') }} {{ 7|round }}", "{{ neg|abs }} {{ f|string }} {{ n|string ~ 'x' }}", "{{ html|e }} {{ html|escape }}", "{{ html|safe }}",
    "{{ 'a b c'|wordcount }} {{ [1,2,3,4,5]|batch(2)|list }} {{ [1,2,3]|batch(2, 'x')|list }}", "{{ '%s-%s'|format('a', 1) }}", "{{ s|nosuchfilter }}", "{{ s|list }} {{ d|list }} {{ 5|list }}", "{{ none_value|trim }} {{ n|upper }} {{ [1]|trim }}", "{{ undefined_name|trim }}|{{ undefined_name|join(',') }}|{{ undefined_name|list }}|{{ undefined_name|items|list }}|{{ undefined_name|upper }}|",
    "{{ 'x'|items|list }}", "{{ s|attr('x') }}|", "{{ rows|map(attribute='k')|unique|join(',') }}", "{{ nested|attr('a') }}|", "{{ rows|sort(attribute='k')|map(attribute='k')|join }}",
    "{{ 7|indent }}", "{{ 0|map('string')|list }} {{ none_value|selectattr('x')|list }}", "{{ 7|map('string')|list }}", "{{ undefined_name|float }}", "{{ undefined_name|int }}", "{{ n[:2] }}", "{{ d[1:] }}", "{{ none_value[:2] }}", "{{ 'say \"x_y\" é-1'|wordcount }}", "{{ 'a' % [1] }}", "{{ 'a' % 1 }}", "{{ true|round }}",
    # tests
    "{{ s is defined }} {{ undefined_name is defined }} {{ undefined_name is undefined }} {{ d.x is defined }} {{ s is not defined }}", "{{ none_value is none }} {{ s is string }} {{ n is string }} {{ d is mapping }} {{ list is mapping }} {{ list is iterable }} {{ n is iterable }} {{ s is iterable }} {{ undefined_name is iterable }}",
    "{{ list is sequence }} {{ s is sequence }} {{ d is sequence }} {{ n is sequence }} {{ n is number }} {{ f is number }} {{ t is number }} {{ t is boolean }} {{ n is boolean }} {{ n is integer }} {{ t is integer }} {{ f is float }}", "{{ n is odd }} {{ n is even }} {{ n is divisibleby 7 }} {{ n is divisibleby(2) }}",
    "{{ n is eq 7 }} {{ n is equalto(7) }} {{ n is ne 7 }} {{ n is gt 5 }} {{ n is lt(5) }} {{ n is ge 7 }} {{ n is le 6 }} {{ n is in [7] }} {{ 'a' is in 'abc' }}", "{{ t is true }} {{ t is false }} {{ 1 is true }} {{ 'abc' is lower }} {{ 'ABC' is upper }} {{ s is lower }}", "{{ n is sameas n }} {{ none is sameas none }}", "{{ not s is defined }} {{ s is defined and n is number }}",
    "{{ s is nosuchtest }}", "{{ range is callable }} {{ s is callable }}", "{{ d.b is defined and d.b is not none }}", "{{ 'x' if s is string else 'y' }}", "{{ n is divisibleby 7 and t }}", "{{ (n is odd) ~ (n is even) }}",
    # string methods
    "{{ ws.strip() }}|{{ ws.lstrip() }}|{{ ws.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcba'.lstrip('ab') }}", "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ''.split(',') }} {{ ''.split() }} {{ ' a b c '.split(none, 1) }}", "{{ s.startswith('He') }} {{ s.endswith('d') }} {{ s.startswith(('x', 'H')) }}",
    "{{ s.replace('o', '0') }} {{ s.replace('o', '0', 1) }} {{ s.upper() }} {{ s.lower() }} {{ 'they\\'re bill\\'s'.title() }} {{ 'ABC def'.capitalize() }}", "{{ s.find('o') }} {{ s.rfind('o') }} {{ s.find('zz') }} {{ s.count('l') }} {{ uni.find('字') }} {{ s.index('W') }}", "{{ ','.join(['a', 'b']) }}", "{{ ','.join(list) }}",
    "{{ 'a{}b{}'.format(1, 'x') }} {{ '{0}{1}{0}'.format('a', 'b') }} {{ '{x}{{}}'.format(x=1) }}", "{{ lines.splitlines() }}", "{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('=') }}", "{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removeprefix('x') }}", "{{ ' '.isspace() }} {{ '12'.isdigit() }} {{ ''.isdigit() }}",
    "{{ 'a</think>b</think>c'.split('</think>')[-1] }} {{ 'a</think>b'.split('</think>')[0].split('<think>')[-1] }}", "{{ [1, 2, 1].count(1) }} {{ [1, 2].index(2) }}", "{{ s.split('') }}",
    # syntax errors
    "{{ x", "{% if %}", "{% if t %}", "{% endif %}", "{{ 1 + }}", "{{ 'a }}", "{# x", "{% nosuch %}", "{{ a b }}", "{% for x list %}{% endfor %}", "{% set 1 = 2 %}", "{{ (1 }}", "{{ [1, }}", "{{ {1} }}", "{% break %}", "{{ 1 is }}", "{{ x | }}", "{{ a. }}", "{{ ) }}", "{{ $ }}", "{% raw %}x", "{% include 'x' %}", "{% macro m(a=1, b) %}{% endmacro %}",
    "}} %} #} { { {x}", "{{ '}}' }}{{ \"%}\" }}", "{{ {'a': {'b': 1}}['a']['b'] }}", "{{ {'a':{}} }}", "{%- if t -%} a {%- else -%} b {%- endif -%}", "{{ '{{' }}", "{% if t %}{# {% endif %} #}x{% endif %}",
]
