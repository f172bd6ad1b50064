"""Write texts.json: the texts whose token ids the tests compare with another implementation's.

Run it from anywhere: `python tests/corpus/make_corpus.py`. The texts are our own.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).parent

PLAIN = [
    "",
    " ",
    "a",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "   three before, three after   ",
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "It's we'll I'VE don't O'Neill's ''quoted'' \"double\"",
    "UPPER lower MiXeD camelCaseName snake_case_name kebab-case-name",
    "3.14159 1,000,000 0xDEADBEEF 1e-10 2026-11-22T02:13:00Z 50% $9.99 €5 ½ ² Ⅷ ٣٤ १२३",
]
LANGUAGES = [
    "Füße, Straße, übermäßig: Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Le cœur déçu mais l'âme plutôt naïve, Louÿs rêva de crapaüter en canoë au delà des îles.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío, ¿añoraba a su querido?",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "עטלף אבק נס דרך מזגן שהתפוצץ כי חם",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق",
    "abc עברית abc \u202eRLO\u202c \u200fRLM\u200f \u2067isolate\u2069",
    "我能吞下玻璃而不伤身体。今天天气很好，我们去公园吧！",
    "いろはにほへとちりぬるを。カタカナ、ひらがな、漢字をまぜて書く。ﾊﾝｶｸ",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. \u1112\u1161\u11ab",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले विष्णुवतार भगवान श्रीराम",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "যে কোনো ভাষা, தமிழ் எழுத்து, తెలుగు, ಕನ್ನಡ, മലയാളം, ქართული, Հայերեն, አማርኛ, ᏣᎳᎩ, ᠮᠣᠩᠭᠣᠯ, བོད་",
    "Tiếng Việt: Trăm năm trong cõi người ta, chữ tài chữ mệnh khéo là ghét nhau.",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İIıi ŁódźŽluťoučký kůň",
]
UNICODE = [
    "👍 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵🇧🇷 1️⃣ ❤️ ☺︎ 🧑🏿‍🚀👨‍❤️‍💋‍👨",
    "e\u0301 n\u0303 A\u030a \u0041\u0301\u0323 Z\u0351\u036b\u0343a\u0363l\u0349g\u035ao",
    "\u00e9 versus e\u0301, \ufb01 \u212b \u2126 \u1e9b\u0323",
    "𠀀𠀁𪚥 \U0002f800 \U000e0041\U000e007f \U0001f1e6 𝒜𝓑𝔠 \U0010fffd",
    "\u200b zero\u200bwidth\u200cjoin\u200ders\u2060 \ufeffBOM \u00adsoft",
    "\u00a0nbsp\u2003em\u2009thin\u3000ideographic\u2028line\u2029paragraph\u0085nel",
    "▁ literal ▁▁ mark a▁b",
    "← ↑ ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β, ∑∫√∞ ≤≥≠ ░▒▓ ┌─┐ ♠♥♦♣",
]
CODE = [
    "def f(x):\n    if x:\n        return {'a': [1, 2, 3]}\n\n\n\treturn None\n",
    '#include <stdio.h>\nint main(void) {\n\tprintf("%d\\n", 1 << 3);\n\treturn 0;\n}\n',
    "for (let i = 0; i !== n; ++i) { a[i] = b?.c ?? `x${i}`; } // done\r\n\r\n/* end */",
    "<table><tr><td>x</td></tr></table><h1>T</h1><br/><i>i</i>&nbsp;<!-- c -->",
    "| a | b |\n|---|:-:|\n| 1 | **2** |\n\n```sh\n$ ls -la | grep 'x'  # no\n```\n\n- [ ] to do\n",
    "\t\ttwo tabs\t\t\tthree\t \t mixed",
    "x" + " " * 17 + "y" + " " * 40 + "z",
]
RUNS = [
    "\n",
    "\n\n\n",
    "\r\n\r\n\r\n",
    "\n \n  \n\t\n",
    "\n" * 40,
    " " * 100,
    " " * 3000 + "end",
    "\t" * 70,
    "a" * 300,
    "ab" * 200,
    "=" * 130 + "-" * 67 + "." * 33,
    "hahahahahaha" * 10,
    "你" * 64,
    "0" * 100,
]
CONTROL = [
    "nul \x00 inside \x00\x00",
    "".join(map(chr, range(1, 32))),
    "\x7f\x80\x9f\xa0\xad\xff",
    "\x1b[31mred\x1b[0m\x07",
    "\ufffd\ufffe\uffff\U0001ffff",
]
SPELLED = [
    "<eos>",
    "<bos>text<eos>",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<0x0A> <0x41><unused0> [multimodal] <mask> <pad><unk>",
    "</s><s>[INST] x [/INST]<|im_end|><|eot_id|>",
]


def random_texts(count: int = 60) -> list[str]:
    """Texts of random code points, denser in scripts, spaces and punctuation than in the rest."""
    rng = random.Random(20261122)
    ranges = [(0x20, 0x7E)] * 4 + [
        (0, 0x2FF),
        (0x300, 0x36F),
        (0x370, 0x1FFF),
        (0x2000, 0x2BFF),
        (0x3000, 0x9FFF),
        (0xAC00, 0xD7A3),
        (0xE000, 0xFFFF),
        (0x10000, 0x10FFFF),
        (0x1F300, 0x1FAFF),
        (0x20000, 0x323AF),
    ]
    texts = []
    for _ in range(count):
        pieces = []
        for _ in range(rng.randrange(1, 50)):
            low, high = rng.choice(ranges)
            pieces.append(chr(rng.randint(low, high)) * rng.choice([1, 1, 1, 1, 2, 5]))
            if rng.random() < 0.2:
                pieces.append(rng.choice([" ", "  ", "\n", "\n\n", "\t"]))
        texts.append("".join(pieces))
    return texts


def main() -> None:
    """Write the file."""
    groups = {
        "plain": PLAIN,
        "languages": LANGUAGES,
        "unicode": UNICODE,
        "code": CODE,
        "runs": RUNS,
        "control": CONTROL,
        "spelled": SPELLED,
        "random": random_texts(),
    }
    (HERE / "texts.json").write_text(json.dumps(groups, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
