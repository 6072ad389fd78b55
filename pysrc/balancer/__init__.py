"""Decisions as pure functions over what nodes and processes report; imports no other part."""
