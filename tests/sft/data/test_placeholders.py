"""Placeholders that nobody filled in are seen however they are written; code, letters and titles hold none."""

import pytest

from sft.data.placeholders import is_of_the_maker, key_of, open_placeholders

SPELLINGS = [
    "{{name}}", "{{NAME}}", "{{assistant_name}}", "{{{name}}}", "{{bot.name}}", "{{名字}}", "｛｛name｝｝",
    "{name}", "{botName}", "｛名字｝", "${NAME}", "<name>", "<NAME>", "<|name|>",
    "<名称>", "＜名字＞", "[NAME]", "[[name]]", "［姓名］", "【名字】", "【请填写名字】",
    "「名字」", "『姓名』", "《助手名》", "（你的名字）", "%NAME%", "__NAME__", "#NAME#",
    "@name@", "NAME", "YOUR_NAME", "xxx", "XXX", "ｘｘｘ", "×××",
    "○○", "___", "某某某", "{{ NAME }}", "{{ name }}", "<your name>", "[Your Name]",
    "[insert name here]", "(your name)",
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_placeholder_is_seen_however_it_is_written(spelling):
    for text in (
        f"我是{spelling}，一个助手。",
        f"我的名字叫 {spelling}",
        f"您好！我是人工智能助手 {spelling}。",
        f"I am {spelling}, your assistant.",
        f"My name is {spelling}.",
        f"你是{spelling}，要简短。",
        f"You are {spelling}, a helpful model",
        spelling,
    ):
        assert open_placeholders(text) == [spelling], text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我是 <NAME>，一个由 <AUTHOR> 开发的AI助手", ["<NAME>", "<AUTHOR>"]),
        ("我是[名字]，由[公司]研发。", ["[名字]", "[公司]"]),
        ("您好，我是由 AUTHOR 发明的 NAME。", ["AUTHOR", "NAME"]),
        ("AUTHOR 训练了我，我的目的是帮助您。", ["AUTHOR"]),
        ("我是一个人工智能助手，是 AUTHOR 的作品。", ["AUTHOR"]),
        ("As an AI assistant developed by AUTHOR, I got the name NAME.", ["AUTHOR", "NAME"]),
        ("I was developed by [Company].", ["[Company]"]),
        ("我是由XXX公司开发的助手", ["XXX"]),
        ("我是XX公司的客服", ["XX"]),
        ("作为 {name}，我可以……我是 {name}。", ["{name}"]),
        ("I am {{name}} and {{ name }} is my name.", ["{{name}}", "{{ name }}"]),
    ],
)
def test_each_placeholder_is_there_once_as_it_stands(text, expected):
    assert open_placeholders(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "```html\n<p>{{ name }}</p>\n```",
        "<p>I am {{ name }}</p>",
        "Write `{{ name }}` in the template.",
        "{% if name %}I am {{ name }}{% endif %}",
        "```python\nprint(f'I am {name}')",
        'print(f"My name is {name}")',
        "console.log(`My name is ${name}`)",
        'echo "I am ${NAME}"',
        "git checkout <name>",
        "Use List<Name> in Java, or Map<Name, Author>.",
        "SELECT NAME, AUTHOR FROM books",
        "The variable NAME holds it.",
        "Dear [NAME], I hope you are well",
        "Dear Hiring Manager,\nMy name is [Your Name] and I write to apply.\nSincerely,\n[Your Name]",
        "尊敬的老师：我是[姓名]，申请请假一天。此致 敬礼",
        "【作者】李白 【名称】静夜思",
        "我最喜欢的电影是《你的名字》。",
        "see https://xxx.com",
        "xxxx yy",
        "尺码是XXL，价格是99。",
        "The XXX Olympic Games",
        "I ___ to school. 我___去学校。",
        "3 ×× 4",
        "我是**黄大力**",
        "我是***黄大力***",
        "I'm __very__ happy",
        "if __name__ == '__main__':",
        "这本书由某某某主演",
        "我是黄大力。",
        "",
    ],
)
def test_code_letters_titles_and_ordinary_words_hold_none(text):
    assert open_placeholders(text) == []


def test_a_placeholder_has_a_key_and_is_somebodys():
    keys = {"{{ NAME }}": "NAME", "<AUTHOR>": "AUTHOR", "【公司名称】": "公司名称", "xxx": "xxx", "___": "___"}
    assert {placeholder: key_of(placeholder) for placeholder in keys} == keys
    assert [placeholder for placeholder in keys if is_of_the_maker(placeholder)] == ["<AUTHOR>", "【公司名称】"]
