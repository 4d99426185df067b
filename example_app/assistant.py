"""A slow and expensive question to a language model, as an async durable task."""

import asyncio
from os import environ

from celery_durable import AsyncDurableContext, durable_task

LLM_SECONDS = float(environ.get("LLM_SECONDS", "3"))


@durable_task
async def ask(ctx: AsyncDurableContext, question: str) -> str:
    """Draft an answer and have it shortened. A crash in the second call does not pay for the first again."""
    draft = await ctx.run("draft answer", call_llm, prompt=question)
    answer = await ctx.run("shorten answer", call_llm, prompt=f"In one sentence: {draft}")
    answered_at = await ctx.now()
    return f"{answer} ({answered_at:%d %B %Y})"


async def call_llm(prompt: str) -> str:
    """Stand in for a call of your provider's async client."""
    await asyncio.sleep(LLM_SECONDS)
    return f"the model's answer to {prompt!r}"
