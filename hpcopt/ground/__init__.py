"""The ground floor, which every room may stand on: files, words, time stamps, the placement of workers."""
