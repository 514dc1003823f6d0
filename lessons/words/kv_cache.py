"""What the grader says in lesson 27: hints, mistakes, remarks, questions."""

exercises = {
    "27a": dict(
        hints=[
            "What of the tokens read before does a new token need, in each block, and does it ever change?",
            "Read the prompt first, then one token at a time. Place, mask and cache go together.",
            "per pass: places, embed; per block: q, k, v; join k, v to the past; attend; then argmax, append",
        ],
        wrong={
            "position always 0":
                "Your first new token is right, the rest drifts: each new token is put at place 0.",
            "position one too far":
                "The first new token is one place too far. How many tokens were read before?",
            "position counts passes":
                "The place of a new token is the number of passes in yours. How long was the prompt?",
            "sees only the first token":
                "Your new tokens see token 0 alone. Which row of the square mask belongs to a new token?",
            "sees only itself": "Each new token sees nobody but itself. Where are the keys of the others?",
            "own key not seen": "A new token does not see itself, where without a cache it does.",
            "prompt without a mask":
                "In the first pass the prompt's tokens see later ones: keys of all deeper blocks are off.",
            "joined along heads": "New keys are more tokens, not more heads. Which axis counts tokens?",
            "joined along features":
                "New keys are more tokens, not longer vectors. Which axis counts tokens?",
            "values not kept": "The keys are kept, the values are not: as many of them are needed.",
            "new ones not kept":
                "Your cache holds the prompt and never grows: new tokens do not see each other.",
            "one cache for all layers":
                "All blocks write into one cache. Are the keys of one block of use to another?",
            "not reset between prompts":
                "Your second text depends on the first: where does a cache begin, and where does it end?",
            "last token read twice":
                "One token is read again in each pass: its keys stand in the cache twice.",
            "recomputes everything":
                "The text is right, and all of it is read again for each token. What has to be read?",
            "first token's guess":
                "You take the logits after the first token of the pass. Which is the newest?",
            "scores not divided": "The scores are too large by the root of the head size (lesson 9).",
            "new tokens alone returned": "The prompt is missing in what you return.",
            "one token too many": "You write one token too many.",
        },
    ),
    "27b": dict(
        hints=[
            "For the third new token, how many tokens are read without a cache, and how many with it?",
            "Without: the text so far, each time. With: the prompt once, then each new token but the last.",
            "plain: p + (p+1) + ..., n terms; cached: p + n - 1; bytes: 2 x layers x kv heads x head size",
        ],
        wrong={
            "each pass the longest": "The text grows: only the last pass is that long.",
            "each pass the prompt": "Without a cache new tokens are read again, too: the text grows.",
            "prompt left out": "Without a cache the prompt is read again in each pass, too.",
            "one pass too far": "The first new token needs the prompt alone. Where does your sum begin?",
            "passes, not tokens": "You count passes. How many tokens does each of them read?",
            "prompt read for free": "With a cache, too, somebody has to read the prompt: once.",
            "prompt read each time": "With a cache the prompt is read once. What is the cache for?",
            "last token read, too": "Nothing follows the last new token: nobody has to read it.",
            "keys alone": "Keys are kept, and what else?",
            "all heads": "Heads of queries are not kept. How many heads of keys are there (lesson 11)?",
            "one head": "How many heads of keys does a layer have?",
            "one layer": "Each layer has a cache of its own.",
            "width of the stream": "Heads times their size need not be C, and queries are not kept.",
            "room for the whole context": "You count room, not what is in it: tokens that were read.",
            "new tokens alone kept": "The prompt's keys are kept, too.",
            "always four bytes": "How many bytes a number has is given: it is not always 4.",
            "numbers, not bytes": "You count numbers. How many bytes has each?",
        },
    ),
}  # fmt: skip

predictions = {
    "27.1": dict(
        ask="tokens read without a cache, as a multiple of those with it, for 64 new tokens after 1",
        wrong={
            64.0: "Only the last pass is 64 tokens long; the first is 1. On average 65 / 2 = 32.5.",
            2.0: "The gain grows with the text: 1 + 2 + ... + 64 against 64, that is 65 / 2 = 32.5.",
            32.0: "Nearly: 1 + 2 + ... + 64 is 64 times 65 / 2, so 32.5.",
            1.0: "Without a cache each pass reads the text so far: 2,080 tokens against 64, 32.5.",
        },
    ),
    "27.2": dict(
        ask="tokens read without a cache, as a multiple of those with it, for 1,024 new tokens after 1",
        wrong={
            1024.0: "Only the last pass is 1,024 tokens long; the first is 1. On average 1,025 / 2 = 512.5.",
            2.0: "The gain grows with the text: it is 1,025 / 2 = 512.5.",
            512.0: "Nearly: the mean of 1 to 1,024 is 512.5.",
            32.5: "That is for 64. The gain grows with the text: 512.5.",
        },
    ),
}  # fmt: skip
