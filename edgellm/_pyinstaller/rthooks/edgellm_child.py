"""Runs in a frozen program before its main module: a child process of edgellm's goes no further."""

from edgellm.child import freeze_support

freeze_support()
