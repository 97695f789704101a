"""The version of grange, apart, so that it can be told without importing anything."""

VERSION = "0.1.0"
