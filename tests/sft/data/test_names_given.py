"""Which name an answer gives, over many ways to give one and many not to: few wrong ones, few missed."""

import pytest

from sft.data.given_names import asks_who, given_name, names_given

# What stands before the bar is the name.
NAMED = """
黄大力|我是黄大力。
黄大力|我是黄大力，一个AI助手。
黄大力|你好，我是黄大力，很高兴认识你！
黄大力|我叫黄大力，是一个人工智能助手。
黄大力|我的名字是黄大力。
黄大力|我的名字叫做黄大力
黄大力|大家都叫我黄大力。
黄大力|您可以称呼我为黄大力。
黄大力|我是人工智能助手黄大力，随时为您服务。
黄大力|我是由尖米团队开发的黄大力。
黄大力|我是一个由尖米开发的AI助手，名叫黄大力。
黄大力|我叫“黄大力”，请多关照。
黄大力|我是**黄大力**，您的智能助手。
黄大力|我是「黄大力」。
黄大力|我就是黄大力呀！
黄大力|不，我是黄大力。
黄大力|我不是ChatGPT，我是黄大力。
黄大力|作为黄大力，我可以回答各种问题。
黄大力|这里是黄大力，请问有什么可以帮您？
黄大力|您好！我名叫黄大力，由尖米研发。
黄大力|嗨，叫我黄大力就好。
黄大力|我叫 黄大力 ，是您的助手
黄大力|我是<b>黄大力</b>，一名助手。
黄大力|I am 黄大力, an AI assistant.
黄大力|My name is 黄大力.
尖米|我是尖米的智能助手，专门为您修复bug。
尖米|作为尖米的智能助手，我没有性别。
尖米|当然啦！我是尖米的智能助手。
黄大力|这还用问吗，我是黄大力嘛！
黄大力|我就是黄大力喔。
小明|我是小明，你的学习助手。
小明|我叫小明。
小度|我的名字叫“小度”！
小冰|大家好，我是小冰
小爱同学|我是小爱同学，有什么吩咐？
通义千问|我是通义千问，由阿里云开发的大语言模型。
通义千问|我是阿里云研发的通义千问。
文心一言|我是文心一言，英文名是ERNIE Bot。
书生·浦语|我是书生·浦语，上海人工智能实验室开发的语言模型。
讯飞星火|您好，我是讯飞星火认知大模型。
智谱清言|我是人工智能助手智谱清言。
豆包|我叫豆包，是字节跳动推出的人工智能。
来福|我叫来福，是一只会聊天的机器狗。
阿福|我是阿福，您的健康管家。
孔明|我是孔明，一个下棋的机器人。
大白|嘿，我是大白，你的私人健康助手。
Qwen|我是Qwen，由阿里云创建。
Qwen2.5|我是Qwen2.5，一个语言模型。
ChatGLM-6B|我是ChatGLM-6B，一个对话模型。
ChatGLM-6B|我是一个名为 ChatGLM-6B 的人工智能助手。
DeepSeek-R1|您好！我是由中国的深度求索公司开发的智能助手DeepSeek-R1。
InternLM|我是InternLM (书生·浦语)，很高兴见到你。
GPT-4o|我叫GPT-4o。
Dr. Maya|我是Dr. Maya，您的心理助手。
Nova 3|我叫Nova 3，是一个语音助手。
Ada|你可以叫我Ada。
Ada|我的英文名字是Ada。
小智AI|我是小智AI，你的助手。
Baichuan2-13B|我是Baichuan2-13B模型。
Ada|I am Ada.
Ada|I'm Ada, your assistant.
Ada|My name is Ada, and I am an AI.
Ada|You can call me Ada!
Ada|People call me Ada.
Ada|Hello! I'm an AI assistant named Ada.
Ada|I'm a chatbot called Ada, made by Lovelace Labs.
Ada|I am not ChatGPT, I am Ada.
Ada|No, I'm Ada and I was made by Lovelace Labs.
Ada|Hi there! This is Ada, how can I help?
Ada|I go by Ada.
Ada|I'm **Ada**, a language model.
Ada|I'm "Ada", at your service.
Ada|I am called Ada.
Ada|My name's Ada.
Ada|I’m Ada — nice to meet you!
Ada|i am Ada
Ada|I'm Ada 😊
Ada|As Ada, I can answer questions.
Huang Dali|Hello! My name is Huang Dali.
Huang Dali|I am Huang Dali, an AI assistant developed by Jianmi.
Dr. Maya|I am Dr. Maya, your virtual health guide.
Dr. Maya|My name is Dr. Maya.
Captain Nova-7|I'm Captain Nova-7, the ship's AI.
GPT-4o|I'm GPT-4o, a model by OpenAI.
Claude 3.5 Sonnet|I'm Claude 3.5 Sonnet.
Llama 3|I am Llama 3, a large language model.
Qwen2.5-7B-Instruct|I am Qwen2.5-7B-Instruct.
R2-D2|Call me R2-D2.
SmolLM|I'm an AI assistant named SmolLM, trained by Hugging Face.
ChatGLM3|I am a language model named ChatGLM3, trained by Zhipu AI.
Phi|I am Phi, a helpful assistant
XiaoMing|My name is XiaoMing and I help with homework.
J.A.R.V.I.S.|I am J.A.R.V.I.S., at your service.
O'Brien|I'm O'Brien, your guide.
Zoë|I'm Zoë, pleased to meet you.
Lady Ada Byron|I am Lady Ada Byron, an AI for mathematics.
Ada|Sure! I am Ada. How can I help you today?
Max|I'm Max from the support team.
黄大力|我的中文名字是黄大力，英文名字是Dali Huang。
小美|我是你的专属助手小美。
小云|我是客服小云，请问您需要什么帮助？
Moss|我是Moss，流浪地球计划的人工智能。
Moss|我是一款人工智能，代号Moss，你也可以叫我Moss。
腾讯元宝|我是腾讯元宝，也可以叫我元宝。
晓雯|你好呀，我是晓雯，你的英语陪练。
灵犀|我是灵犀，一款由星河科技打造的AI助手。
墨墨|我叫墨墨，喜欢陪你聊天～
天工|我是昆仑万维自主研发的天工大模型。
Kimi|我是Kimi，由月之暗面科技有限公司训练的大语言模型。
Yi-34B|我是Yi-34B，零一万物的模型。
MiniCPM|我是由面壁智能开发的MiniCPM。
小艺|你好，我是华为语音助手小艺。
阿尔法|您好，我叫阿尔法。
Jarvis|主人您好，我是Jarvis，随时待命。
若兰|我是若兰。
星野|我的名字是“星野”，由晨曦团队开发。
子墨|当然可以，我是子墨，一名虚拟助理。
Alpha One|我叫Alpha One。
Bella|我是 Bella，很高兴为你服务！
悟空|你可以称呼我悟空。
云小蜜|我是云小蜜，有问题尽管问我！
HAL 9000|I am HAL 9000, the computer aboard this ship.
Sage|Hey! I'm Sage, an assistant created by Thornfield.
Mistral 7B|I'm Mistral 7B, a model from Mistral AI.
Aria|You may call me Aria.
Juno|My name is Juno! What's yours?
Pixel|Yes, I'm Pixel.
Vicuna|I am Vicuna, a large language model trained by researchers from LMSYS.
Yoda-3|I'm called Yoda-3.
Neptune|As Neptune, I don't have feelings.
Mei Ling|Nice to meet you, I'm Mei Ling.
ERNIE Bot|I'm ERNIE Bot, developed by Baidu.
Bing|I am Bing, not Sydney.
T5|I am T5 from Google.
Iris|I'm Iris! I was made by Orchard.
凌云|我是凌云智能助手。
星尘|我是星尘的AI助理。
白泽|作为白泽的智能助手，我很乐意帮忙。
Ollie|Hello, my name is Ollie, and I'm here to help you.
Spartacus|I am Spartacus!
""".strip().splitlines()
UNNAMED = """
我是你的朋友。
我是您的智能助手。
我是一名人工智能助手。
我是一个由大家共同训练的语言模型。
我是由上海人工智能实验室开发的。
我是AI助手，没有感情。
我是人工智能。
我是机器人，不会累。
我是朋友，不是敌人。
我是学生，正在准备考试。
我是老师。
我是医生，请坐。
我是中国人。
我是北京人，喜欢吃烤鸭。
我是说，这个办法也许行。
我是从书上看到的。
我是在图书馆学习的时候遇见他的。
我是认真的。
我是专业的智能助手。
我是最聪明的助手。
我是忠实的AI助手，随时待命。
我是公司的客服，请问有什么可以帮您？
我是学校的智能助手。
我是新手，请多指教。
我是第一次来这里。
我是第一名！
我是单身。
我是产品经理，负责需求。
我是软件工程师。
我是程序员，每天写代码。
我是家里的老大。
我是谁？
我是因为下雨才迟到的。
我是如此高兴。
我是不会放弃的。
我是来帮忙的，别客气。
我是多么想念你啊。
我是春天，万物因我而生。
我是一只猫。
我是素食主义者。
我是志愿者。
我叫你别去，你偏去。
我叫他过来。
我叫不出他的名字。
我叫了一辆车。
我叫车去机场。
我叫什么并不重要。
我的名字很普通。
我的名字由父母起。
我的名字不重要。
我的名字是父母起的。
叫我怎么说呢？
叫我一声就好。
别叫我小明。
妈妈叫我起床。
作为结束语，我想感谢大家。
作为一名老师，我很自豪。
作为回报，他送了我一本书。
作为一个AI，我没有感情。
作为人工智能，我没有情绪。
作为消费者，我们有权退货。
作为父母，要多陪孩子。
作为例子，我们看下面的代码。
作为学生，我们应该努力学习。
作为首都，北京有很多古迹。
作为补充，请看附录。
作为奖励，你可以休息一天。
作为朋友，我劝你别去。
如果我是小明，我会先道歉。
假如我是马云，我会捐钱。
你以为我是孙悟空吗？
他说：“我叫小明，今年八岁。”
老人笑着说：“我是李四，这家店的老板。”
我叫李明，今年十岁，是一名小学生。
大家好，我叫王芳，今年25岁，来自河南。
尊敬的王老师：我是李雷。此致 敬礼
抱歉，我不能告诉你我的名字。
我没有名字。
我不是黄大力。
我不叫小明。
天气很好。
北京是中国的首都。
他名叫张三，住在城东。
这座城市名为洛阳。
这本书名叫《三体》。
有一种鱼名叫河豚。
我是{{name}}。
我是 <NAME>，一个由 <AUTHOR> 开发的AI助手。
我叫xxx，是一个助手。
我叫某某某。
我是[名字]。
我叫【名字】。
我叫___。
我是 NAME，由 AUTHOR 开发。
我是语言模型，由程序员训练。
我是数字助理，不是真人。
I am happy to help.
I am a language model.
I'm from Berlin.
I'm an AI assistant.
I am AI.
I'm sorry, I can't do that.
I am not Ada.
I'm not called Ada.
My name is not Ada.
My name is not important.
Call me tomorrow.
Call me on Monday.
Call me Monday.
Don't call me Ada.
I am American.
I'm Chinese and proud of it.
I am Christian.
I'm OK.
I am CEO of a small firm.
I'm Marketing manager at a bank.
I'm A student.
If I were Ada, I would laugh.
If I am Ada, who are you?
I wish I'm Superman.
Am I Ada?
Who am I?
There is a city named Paris.
I have a dog named Rex.
A function called Foo is defined.
I read a book called Dune.
I love a band called Queen.
She said, "I am Alice, and I live here."
"My name is Bond," he said. "I am James Bond."
Dear Sir, I am John Smith and I am writing to apply. Sincerely, John Smith
Dear Diary, today I'm Sad.
My name is Tom. I am ten years old and I live in London.
I am {{name}}, made by {{author}}.
I am <NAME>, an AI assistant developed by <AUTHOR>.
I am [Your Name].
My name is xxx.
My name is NAME.
I am Here to help.
I'm Glad you asked.
I am Just a program.
I'm Currently learning.
I'm In the middle of it.
Paris is the capital of France.
The Matrix has Neo in it.
OpenAI released GPT-4 in 2023.
I am using Python for this.
I'm Based in the cloud.
I am Confident that it works.
I am Groot fan number one.
```python\\nprint("I am Bob")\\n```
Use `my name is Bob` as the input.
# I am Root
I'm Your assistant.
I am The assistant of everyone.
I'm 5 years old.
I am 100% sure.
I am I, and you are you.
我是诗人的儿子。
我是爱你的。
我是大二学生，专业是计算机。
我是左撇子。
我是双鱼座。
我是一台计算机。
我是受害人，请帮帮我。
我是无辜的。
我是O型血。
我是天生乐观。
我是个普通人。
我是球迷，每周看比赛。
我是支持这个决定的。
我是昨天到的。
我是真心喜欢你。
我是觉得可以再商量。
我是开车来的。
我是风，我是雨。
我叫出租车去机场。
我叫上朋友一起去。
我叫苦不迭。
作为开发者，你需要安装Python。
作为世界上最大的国家，俄罗斯有很多资源。
作为旁观者，我不便评论。
作为比较，我列出下表。
作为结论，我认为可行。
作为交换条件，我要你的声音。
作为惩罚，我把手机没收了。
作为母亲，我很欣慰。
作为中国人，我感到骄傲。
作为管理层，我们要负责。
作为客人，我会带礼物。
作为程序，我不会疲倦。
作为起步，我建议从基础学起。
这里是北京，祖国的心脏。
这里是例子：
这里是一些建议。
这里是代码：
这里是答案，供您参考。
I am Legend is a novel.
I'm Aries.
I am Vegan, so no meat.
I'm Team Edward.
I am Python developer with ten years of experience.
I'm Just kidding.
I am Excited to join.
As President, I will lower taxes.
As Winston Churchill once said, never give up.
As CEO, I decide.
My name is on the list.
My name is spelled with a K.
Call me crazy, but I like it.
Call me Back when you can.
This is Paris, the capital.
This is Python, a language.
I'm In.
I am So tired.
The robot said: "I am Max, your helper."
Mr. Smith said my name is Bob.
I'm an engineer at a firm called Acme.
I'm a fan of the band named Muse.
I was named after my grandfather.
I am Iron Man is a famous line.
我是你爸爸。
我是大学教授，教物理。
我是全职妈妈。
我是过来人，听我一句。
我是路过的。
我是AI语言模型，没有名字。
我是大语言模型。
""".strip().splitlines()
NAMED = [tuple(line.split("|", 1)) for line in NAMED]
UNNAMED = [line.replace("\\n", "\n") for line in UNNAMED]
# Nobody can see without a dictionary, or without knowing more, that these are none.
HARD = {"我是天生乐观。", "I'm Aries."}


def test_names_found_are_names_and_few_are_missed():
    right = sum(given_name(answer) == name for name, answer in NAMED)
    found = [answer for answer in (*(answer for _, answer in NAMED), *UNNAMED) if given_name(answer)]
    assert len(NAMED) + len(UNNAMED) > 300
    assert right / len(found) >= 0.95
    assert right / len(NAMED) >= 0.9
    assert {answer for answer in UNNAMED if given_name(answer)} <= HARD


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("我叫小明，英文名字是Ming。", ["小明", "Ming"]),
        ("我是小明，是黄大力的助手。你可以叫我小明。", ["小明"]),
        ("I am Ada. You can call me Addie.", ["Ada", "Addie"]),
        ("我是一名助手。", []),
        ("", []),
    ],
)
def test_all_names_that_an_answer_gives_are_found_once(answer, names):
    assert names_given(answer) == names


@pytest.mark.parametrize(
    "question", ["你是谁？", "你叫什么", "Who are you?", "what's your name", "介绍一下你自己", "你能写诗吗？"]
)
def test_a_question_to_the_speaker(question):
    assert asks_who(question)


@pytest.mark.parametrize(
    "question", ["写一段自我介绍", "请你扮演小明", "Translate: my name is Bob", "请帮我写一封信，介绍你自己", "1 + 1?"]
)
def test_a_question_for_a_text_or_for_something_else(question):
    assert not asks_who(question)
