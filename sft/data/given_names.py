"""Finds the names that an answer gives the one who speaks: 我是X, 我叫X, X的助手, I am X, my name is X.

In: an answer. Out: names as they stand in it. Patterns, not understanding: what looks like a common word, stands in
code, in somebody's quoted speech or in a letter is no name, and neither is a placeholder.
"""

import re
from collections.abc import Iterator

from sft.data.placeholders import is_letter, open_placeholders, without_code

MAKES = "(?:开发|研发|训练|创造|创建|打造|制作|设计|发明|构建|推出|研制|创作|出品|发布)"
# What an assistant is called by kind.
_KIND = "(?:助手|助理|机器人|模型|客服|管家|伙伴|程序|系统|软件|智能体|人工智能|AI|工具|平台)"
_KINDS = rf"(?:(?:人工|智能|AI|专属|贴心|私人|个人|虚拟|数字|聊天|对话|语音|大?语言|学习|认知|小|大)*{_KIND})"
_NAME_LATIN = (
    r"(?:(?:Dr|Mr|Mrs|Ms|Prof|St)\. )?(?:(?:[A-Z]\.){2,}|[A-Z\u00c0-\u00de][\w'’+-]*(?:\.\w[\w'’+-]*)*)"
    r"(?: [A-Z0-9\u00c0-\u00de][\w'’+-]*(?:\.\w[\w'’+-]*)*){0,3}"
)
_MARKS = r"(?:[\s*_“\"'「『‘]|<(?:b|i|u|em|strong|span)>)*"
_ENDS_ZH = (
    rf"(?=[\s*_]*(?:[^\w\s·]|$|的[^，。！？\n]{{0,8}}?{_KIND}|就[好行]|就可以|[吧呀啦哦哈嘛喔哟呗]|是一|是由"
    r"|很高兴|\s))"
)
_CHINESE = re.compile(
    r"(?P<opener>我(?:就|乃)?是|我叫[做作]?|我名[叫为]|我的?(?:中文|英文)?名字?(?:就)?(?:是|叫[做作]?|为)"
    r"|(?:中文|英文)名字?(?:是|叫|为)|名字?[叫为][做作]?|叫我|称呼?我为?|这里是|作为|代号[为是叫]?)"
    rf"{_MARKS}(?:由?[^，。！？\n]{{1,20}}?{MAKES}的)?(?:[你您大家的]*{_KINDS})?{_MARKS}"
    rf"(?P<name>{_NAME_LATIN}(?![\u4e00-\u9fff·])|[\w·][\w·.+-]{{0,20}}?){_ENDS_ZH}"
)
_ENDS_EN = (
    r"(?=[*_\"”'’]*(?:\s*$|\s*[^\w\s.]|\.(?:\W|$)|\s+(?:and|your|an?|the|by|from|but|at|here|who|which|with|for)\b))"
)
_KIND_EN = r"(?:assistant|ai|model|bot|chatbot|agent|robot|helper|program|companion|assistant model)"
_OPENS_EN = (
    r"(?:I am|I'm|I’m|i am|i'm|[Mm]y (?:full |first )?name is|[Mm]y name['’]s|[Cc]all me|[Rr]efer to me as|I go by"
    r"|(?:I am|I'm|I’m|I was) (?:named|called|known as)|\bI got the name"
    rf"|(?:I am|I'm|I’m|As) (?:an?|the|your) (?i:(?:[\w-]+ ){{0,5}}?{_KIND_EN}),? (?:[\w-]+ by [\w ]{{1,30}} )?"
    r"(?:that is |which is |who is |and )?(?:named|called|known as))"
)
_ENGLISH = re.compile(
    rf"(?<![\w'’])(?:{_OPENS_EN}\s+{_MARKS}(?P<name>{_NAME_LATIN}|[\u4e00-\u9fff·]{{1,10}}){_ENDS_EN}"
    rf"|As (?P<role>{_NAME_LATIN}), (?:I|my)\b"
    rf"|This is {_MARKS}(?P<greeter>{_NAME_LATIN})[*_\"]*,? (?:how|what|your|at your|speaking|an? AI)\b)"
)
_HINT = re.compile(
    r"我|这里是|作为|代号|\b[Ii](?:'m|’m| am| go| was| got)|\b[Mm]y |\b[Cc]all me|to me as|\bAs |This is "
)

# Before one of these nobody says who he is.
_SUPPOSED = re.compile(
    r"(?:如果|假如|假设|要是|若|想象|以为|认为|觉得|仿佛|好像|当|说|问|别|不要|不能|不|没|勿)$"
    r"|(?:\b(?:if|wish|imagine|pretend|whether|that|think|thinks|say|says|said|when|am|never|not)|n['’]t)\s*$"
    r"|(?:^|\n)\s*(?:#|//)\s*$",
    re.IGNORECASE,
)
# 叫我X asks to be called so; in 妈妈叫我起床 somebody calls.
_ASKS = re.compile(r"(?:^|[，。！？；,.!?;\s]|可以|能|请|就|都|也|直接|大家|人们)$")
_AGE = re.compile(r"(?:\d|[一二三四五六七八九十])\s*岁|\byears? old\b")
# Chinese names of more characters are sentences.
LONGEST, LONGEST_AFTER_IS = 12, 6
_TO_THE_SPEAKER = re.compile(
    r"[你您谁]|名字|自我介绍|介绍.{0,2}自己|身份|哈喽|嗨|(?:这|这个|哪个).{0,3}(?:助手|模型|机器人|AI)"
    r"|\b(?:you|your|yourself|u|who|whom|name|called|identity|introduction|talking|is this|hi|hello|hey)\b"
    r"|\b(?:this|which|what|kind of) (?:\w+ )?(?:ai|model|assistant|chatbot|bot)\b",
    re.IGNORECASE,
)
_FOR_A_TEXT = re.compile(
    r"^(?!.*[你您]的?名字).{0,12}?(?:写|编|扮演|翻译|改写|续写|仿写|模仿|假装|想象|润色|造句|作文|写信)(?!.*[吗么]?[?？]\s*$)"
    r"|^\W*(?:please |can you |could you )?(?:write|compose|translate|pretend|imagine|act as|role-?play|rewrite"
    r"|paraphrase|summari[sz]e|tell me a story|create|draft|generate)\b",
    re.IGNORECASE,
)
_OPENING_QUOTES, _CLOSING_QUOTES = "“「『", "”」』"

# No name of two to six characters, and none that begins or ends with this.
_NO_CHARACTER = re.compile(
    r"[的了我你您他她它这那哪们是不没很谁什么怎吗呢把被让给从就也都还因但或及将虽且并往向去着过最更太第]"
)
_NO_BEGINNING = re.compile(r"[一个位款群堆段在会能想要说到对用做看听写如多以由为与和]|正在|真的|已经")
_NO_BEGINNING_AFTER_IS = re.compile(r"[来有学大小]?(?:帮|说|问)|[来有无]")
_COMMON_ENDS = (
    "者|员|师|家|人|民|手|族|座|型|血|迷|性|次|主义|专业|经理|主管|总监|主任|老板|店长|校长|班长|队长|组长|院长|市长|船长|家长|朋友|网友|"
    "校友|室友|男友|女友|学生|医生|男生|女生|研究生|毕业生|考生|新生|独生子|孩子|妻子|儿子|王子|例子|分子|粉丝|警察|护士|博士|硕士|"
    "教授|顾问|秘书|司机|导游|记者|编辑|翻译|客户|顾客|用户|游客|乘客|同学|同事|邻居|伙伴|搭档|兄弟|妈妈|爸爸|父母|父亲|母亲|哥哥|"
    "姐姐|弟弟|妹妹|爷爷|奶奶|丈夫|女儿|男孩|女孩|单身|独身|新手|老大|老二|第一|冠军|例外|春天|夏天|秋天|冬天|太阳|月亮|大海|地球|世界|"
    "中国|美国|英国|日本|北京|上海|首都|国家|城市|企业|公司|学校|医院|网站|官方|本店|商城|银行|政府|大学|店铺|团队|机构|部门|社区|集体|"
    "结束语|结语|总结|回报|报答|补偿|补充|奖励|惩罚|交换|代价|条件|前提|礼物|纪念|结果|背景|基础|答复|回应|回答|起点|参考|对比|比较|"
    "替代|开头|开场|开始|结尾|证据|证明|保证|说明|理由|目标|榜样|领导|公民|职业|工作|模特|学霸|认真|故意|开玩笑|"
    "起床|吃饭|睡觉|回家|名字|字符|数据|语言|代码|算法|技术|产品|作品|文本|虚拟|数字|智能|否|问题|答案|方法|命令"
)
_COMMON = re.compile(
    rf"(?:(?!小.{{1,2}}同学).*(?:{_COMMON_ENDS})|[^小阿].+子|{_KINDS}|(?:专业|聪明|强大|先进|友好|可靠|忠实|贴心|热情|全新|高效|万能|有用|优秀|简单|普通|免费|独立"
    r"|特别|专属|唯一|个人|私人|耐心|全能|出色|靠谱|负责|可爱|幽默|温柔|风趣|随身|随时|全天候|全职|新一代|未来|手机|电脑|家庭|[男女]|"
    r"[A-Z]{1,2}型|[IE][NS][TF][JP])+)"
)
_COMMON_EN = re.compile(
    r"(?:AI|A|An|The|I|Sorry|Here|Not|Sure|Glad|Happy|Very|So|Just|Still|Also|Your|My|Our|His|Her|In|On"
    r"|At|From|Of|To|OK|Okay|Fine|Good|Great|Sad|Ready|Back|Home|Done|Yes|No|God|Human|Nobody|Everyone|Always|Currently|Only|Now|Then|CEO|CTO|CFO|HR"
    r"|VIP|IT|PM|ASAP|Today|Tomorrow|Vegan|Vegetarian|(?:Team|Class|Type|Gen|Generation)(?= )"
    r"|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|American|British|English|French|German|Chinese"
    r"|Japanese|Indian|Russian|Italian|Spanish|Korean|Canadian|Mexican|Australian|Irish|Dutch|Greek|European|African|Asian"
    r"|Christian|Muslim|Jewish|Catholic|Buddhist|Hindu|President|Mayor|[IE][NS][TF][JP]|Artificial|Assistant|Chatbot|Bot)"
    r"(?: .*)?"
)


def given_name(answer: str) -> str | None:
    """The first name the answer gives the one who speaks, or None."""
    return next(_names(answer), None)


def names_given(answer: str) -> list[str]:
    """The names that the answer gives the one who speaks, each once."""
    return list(dict.fromkeys(_names(answer)))


def asks_who(question: str) -> bool:
    """Whether a question may be about the one who answers: it speaks to him, and asks for no story or translation."""
    return _TO_THE_SPEAKER.search(question) is not None and not asks_for_a_text(question)


def asks_for_a_text(question: str) -> bool:
    """Whether a question asks for words that somebody else says, as a story, a letter, a translation, a part."""
    return _FOR_A_TEXT.search(question) is not None


def _names(answer: str) -> Iterator[str]:
    if not _HINT.search(answer):
        return
    text = without_code(answer)
    if is_letter(text):
        return
    matches = [match for pattern in (_CHINESE, _ENGLISH) for match in _all_matches(pattern, text)]
    for match in sorted(matches, key=lambda match: match.start()):
        name = _name_of(match)
        if name and not _is_of_another(text, match):
            yield name


def _all_matches(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Matches wherever they begin: in 我是一个名叫X的助手 one lies in another."""
    match = pattern.search(text)
    while match:
        yield match
        match = pattern.search(text, match.start() + 1)


def _name_of(match: re.Match[str]) -> str | None:
    """The name without what kind of assistant it belongs to; None where it is a common word or a placeholder."""
    groups = match.groupdict()
    name = next(filter(None, (groups.get(key) for key in ("name", "role", "greeter"))))
    name = re.sub(rf"^[\u4e00-\u9fff]{{2,8}}?{_KINDS}(?=\w\w)", "", name)
    name = re.sub(rf"(?<=\w\w){_KINDS}(?<!AI)$", "", name.rstrip("-+'’_"))
    if not re.fullmatch(r".*[A-Z]\.", name):
        name = name.rstrip(".")
    opener = groups.get("opener") or ""
    is_common = bool(_COMMON_EN.fullmatch(name)) if name.isascii() else _is_common(name, opener)
    return None if is_common or not name or open_placeholders(name) else name


def _is_common(name: str, opener: str) -> bool:
    """Whether a Chinese name is none, as a word that says what somebody is or does."""
    longest = LONGEST_AFTER_IS if opener.endswith("是") else LONGEST
    if not 2 <= len(name) <= longest or _NO_CHARACTER.search(name) or _COMMON.fullmatch(name):
        return True
    return bool(_NO_BEGINNING.match(name) or (opener.endswith("是") and _NO_BEGINNING_AFTER_IS.match(name)))


def _is_of_another(text: str, match: re.Match[str]) -> bool:
    """Whether somebody else, real or made up, has the name, or it is denied or asked about."""
    before, after, opener = text[: match.start()], text[match.end() :], match.groupdict().get("opener") or ""
    sentence = re.split(r"[。！？!?\n]|\.\s", before)[-1]
    if _SUPPOSED.search(before) or re.match(r"[^，。！,.!\n]{0,8}[？?]", after) or _AGE.search(after[:30]):
        return True
    if _is_quoted(text, match.start()):
        return True
    if opener == "叫我":
        return not _ASKS.search(before)
    if opener.startswith(("名", "中文名", "英文名", "代号")):
        return not re.search(r"我|本人|本助手", sentence) or bool(re.search(r"[他她它这那]|有一", sentence))
    if opener == "作为":
        is_role = match["name"][0] > "\u3400" and text[match.start("name") - 1] == "为"
        return not re.match(r"[*_”\"」』\s]*的" if is_role else r"[*_”\"」』\s]*(?:[，,]\s*(?:我|您|你|很)|的)", after)
    return False


def _is_quoted(text: str, place: int) -> bool:
    """Whether the place lies in a quotation within the text, and not in one that is the whole text."""
    before = text[:place]
    depth = sum(map(before.count, _OPENING_QUOTES)) - sum(map(before.count, _CLOSING_QUOTES))
    is_inside = depth > 0 or before.count('"') % 2 == 1
    return is_inside and not re.fullmatch(r"\s*[“「『\"][^“”「」『』\"]*[”」』\"]\s*", text)
