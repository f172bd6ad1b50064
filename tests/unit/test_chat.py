"""Chat templates: written like those of the supported families, and hostile ones."""

from __future__ import annotations

import re

import pytest

from infc.diagnostics import Code, UserError
from infc.runtime import chat
from infc.runtime.chat import render_chat

MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
]

LLAMA3 = """
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
        + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN3 = """
{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- set ns = namespace(last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and message.content is string %}
        {%- set ns.last = messages | length - loop.index0 - 1 %}{%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content.strip() + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- 'x' }}{%- endif %}
{%- endif %}{{ ns.last }}
"""
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] | trim + '\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate user/assistant') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {{- message['content'] | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
MISTRAL = """
{%- set user_messages = messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for message in messages if message.role != 'system' %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' ~ (messages[0].content | trim ~ '\\n\\n' if message == user_messages[-1]) ~
            message.content ~ ' [/INST]' }}
    {%- else %}
        {%- generation %}{{- ' ' ~ message.content ~ eos_token }}{%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""


def _render(template: str, messages: object = MESSAGES, *, prompt: bool = True) -> str:
    return render_chat(
        template,
        messages,
        bos="<s>",
        eos="</s>",
        add_generation_prompt=prompt,  # type: ignore[arg-type]
    )


def test_llama3() -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye")]
    text = "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
        for role, content in turns
    )
    assert _render(LLAMA3, prompt=False) == "<s>" + text
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert _render(LLAMA3) == "<s>" + text + header


def test_qwen3() -> None:
    assert _render(QWEN3) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n3"
    )


def test_gemma() -> None:
    assert _render(GEMMA) == (
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!"
        "<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )


def test_mistral() -> None:
    assert _render(MISTRAL) == ("<s>[INST] Hi [/INST] Hello!</s>[INST] Be brief.\n\nBye [/INST]")


def test_json_is_not_escaped_for_html_and_text_is_not_a_template() -> None:
    messages = [{"role": "user", "content": "<é> {{ 1 + 1 }}"}]
    template = "{{ messages | tojson }}{{ messages[0].content }}"
    assert _render(template, messages) == (
        '[{"role": "user", "content": "<é> {{ 1 + 1 }}"}]<é> {{ 1 + 1 }}'
    )


def test_blocks_are_trimmed_as_transformers_does() -> None:
    assert _render("a\n  {% if true %}\n  b\n  {% endif %}\nc\n") == "a\n  b\nc"


def test_the_date_is_known() -> None:
    assert re.fullmatch(r"\d\d \w{3} \d{4}", _render("{{ strftime_now('%d %b %Y') }}"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "access to attribute '__init__'"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{{ 'a' * 10**10 }}", "needs too much memory"),
        ("{{ '%10000000000d' % 1 }}", "needs too much memory|fails: "),
        ("{{ '{:10000000000}'.format(1) }}", "needs too much memory|fails: "),
        ("{{ 'a' | center(10**10) }}", "needs too much memory"),
        ("{% set n = namespace(a='xx') %}{% for i in range(60) %}{% set n.a = n.a * 9 %}"
         "{% endfor %}", "needs too much memory"),
        ("{% for i in range(10**6) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "maximum recursion depth exceeded"),
        ("{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "at most 8388608 characters"),
    ],
)  # fmt: skip
def test_hostile_templates_are_refused(template: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _render(template)
    assert caught.value.code is Code.CHAT_TEMPLATE


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 9) }}",
    ],
)
def test_endless_templates_are_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_CPU_SECONDS", 0.2)
    with pytest.raises(UserError) as caught:
        _render(template)
    assert str(caught.value) == (
        "error[INF1103]: the chat template took more than 0.2 s of processor time\n"
        "  --> chat template"
    )
