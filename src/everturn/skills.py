"""`skills`: folders of instructions for models (`from everturn import skills`)."""

from __future__ import annotations

from everturn.chat.skill_tools import build_tools
from everturn.chat.skills import ResolvedSkill, Skill, define

__all__ = ["ResolvedSkill", "Skill", "build_tools", "define"]
