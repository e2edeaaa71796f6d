"""A few conversations, as rows in XTuner's form and under SmolLM2's chat template; questions to score with."""

from sft.data.questions import Question

SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONVERSATIONS = [
    [("Who are you?", "I am 黄大力, an assistant.")],
    [("你是谁？", "我是黄大力。"), ("2 + 2 = ?", "4")],
    [("What is the capital of France?", "Paris.")],
    [("介绍一下你自己", "我叫黄大力，很高兴认识你。")],
    [("Name three colours, please.", "Red, green and blue are three colours that most people know well.")],
]


def xtuner_row(turns: list[tuple[str, str]]) -> dict:
    return {"conversation": [{"input": question, "output": answer} for question, answer in turns]}


def asked(*texts: str) -> list[Question]:
    """Questions of a set, without anything before them."""
    return [Question(({"role": "user", "content": text},)) for text in texts]
