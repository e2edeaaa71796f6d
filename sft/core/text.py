"""How many of something, in words."""


def counted(count: int, noun: str) -> str:
    """Such as "1 row", "1,234 rows" and "2 processes"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"
