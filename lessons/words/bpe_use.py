"""What the grader says in lesson 6: hints, mistakes, remarks, questions."""

exercises = {
    "6a": dict(
        hints=[
            "In which order were the merges learned, and what says so in the list of tokens?",
            "Names first, then `split`, then a list of single bytes for each word, in which two become one.",
            "while two neighbours joined are in rank: join those of smallest rank; then the rank of each",
        ],
        wrong={
            "longest match first":
                "It decodes well, but always takes the longest token. In which order did training join?",
            "longest match, names cut":
                "Two things: the longest token that fits is taken, and a special token's name is cut up.",
            "from the left":
                "Yours joins what it meets first from the left. Which of the possible tokens is the oldest?",
            "leftmost pair again":
                "Yours always joins the leftmost pair that is a token. Which pair was merged first?",
            "leftmost pair, names cut":
                "Two things: the leftmost pair is joined, not the oldest, and a special name is cut up.",
            "youngest first":
                "Yours joins the pair of the largest id first. Which one did training make first?",
            "one merge a word": "One merge in each word, and then? New neighbours may be a token again.",
            "no merge": "These are plain bytes. Are any two neighbours together a token?",
            "whole words or bytes":
                "A word that is no token falls back to bytes here, though parts of it are tokens.",
            "letters, not bytes":
                "A letter outside ASCII is not among the first 256 tokens. What is it made of?",
            "letters, by index":
                "One letter outside ASCII is several bytes, and so several of the first 256 tokens.",
            "list of letters":
                "list(word) makes letters, and each token is bytes. With what does a word begin?",
            "list of letters, by index":
                "list(word) makes letters, and `tokens` holds bytes. Which bytes has the word?",
            "code points": "ord() of a letter is no id: the ids below 256 are bytes of UTF-8.",
            "special token cut up":
                "The special token became several ids. When has its name to be looked for?",
            "special token lost":
                "The special token is gone. re.split keeps what it splits at only if that is in brackets.",
            "no names, cut everywhere":
                "With no special tokens yours cuts the text into letters: an empty pattern fits everywhere.",
            "blanks lost": "The blanks are gone: str.split drops them, the `split` of this lesson does not.",
            "words not cut":
                "A merge went across the border of two words. Training has cut the text with `split` first.",
            "shorter name first":
                "One name begins another here, and yours finds the shorter. Which of two that fit is meant?",
            "first name only":
                "One special token has its id, others are cut up like any text. How many names has "
                "`special`?",
            "ids in order":
                "Your special tokens are numbered through. `special` says which id each name has.",
        },
    ),
    "6b": dict(
        hints=[
            "How many tokens may one letter lie across?",
            "Collect the bytes of all ids, names of special tokens included; read them once.",
            "join(tokens[i], or the name's bytes, for each id), then decode as UTF-8 with errors replaced",
        ],
        wrong={
            "token by token": "A letter may lie across two tokens. When are its bytes complete?",
            "token by token, replaced":
                "Letters that lie across two tokens became several U+FFFD. Join the bytes first.",
            "errors ignored":
                "Your text is shorter: bytes that are no UTF-8 left no trace. What should stand there?",
            "strict": "Right for whole letters. A model may put out any ids, and they must decode.",
            "latin-1": "One letter for each byte: that is latin-1. In which encoding was the text?",
            "ids as code points": "chr() of an id: but an id is a place in `tokens`.",
            "special tokens lost": "The special tokens are gone. Each one stands for its name.",
            "special tokens not known": "An id beyond the ordinary tokens: whose is it?",
            "blanks between": "There is a blank between all tokens. Blanks are part of the tokens already.",
            "written as bytes":
                "This begins with b': str() of bytes shows how Python writes them, and is not their text.",
            "bytes": "These are the bytes. Which text do they spell?",
            "first name only":
                "One special token gets its name, the next has none. How many names has `special`?",
            "ids in order": "Names are exchanged: `special` says which id each has, and not by its order.",
        },
    ),
    "6c": dict(
        hints=[
            "Two models read the same page. What do both pay for, in the same unit?",
            "loss times tokens is what the whole text costs, in nats; its bytes are the same for all.",
            "bits = loss * tokens / ln 2 / bytes; parameters = body + vocab_size * n_embd; sort by bits",
        ],
        wrong={
            "loss per token":
                "This is the loss per token: letters always win. What does the whole text cost?",
            "perplexity per token":
                "Perplexity is per token, too: long tokens are harder. What does the whole text cost?",
            "bits per token": "In bits, but per token. What do all tokens of the text cost together?",
            "nats per byte": "Yours is 0.693 times ours: the loss comes in nats, and bits are asked for.",
            "times ln 2":
                "Yours is 0.48 times ours. A nat is 1.44 bits: are there more bits than nats, or fewer?",
            "bits per character": "Per character. How many bytes has a letter that is not English?",
            "upside down":
                "Multiplied by the bytes of a token. If two bytes cost 8 bits, what does one cost?",
            "ranked by loss":
                "The bits per byte are right, and the order is still that of the loss per token.",
            "not ranked": "The order is that of `runs`. Which one is best?",
            "worst first": "Your first is the worst: fewer bits per byte are better.",
            "embedding forgotten":
                "All models have the same size here. What does a larger vocabulary add to a model?",
            "one number per token": "How many numbers has a token's row in the embedding?",
            "embedding twice": "The models are tied: input and output use the same rows, which count once.",
            "embedding alone": "These are the embeddings. Where is the rest of the model?",
        },
    ),
}  # fmt: skip

predictions = {
    "6.1": dict(
        ask="ids of \"안녕\" (two letters) before any merge",
        wrong={
            2: "2 letters, but an id is a byte of UTF-8 here; each of these letters has three, so it is 6.",
            4: "4 is UTF-16, two bytes a letter; in UTF-8 each of these has three, so it is 6.",
            8: "8 is UTF-32, four bytes a letter; in UTF-8 each of these has three, so it is 6.",
        },
    ),
    "6.2": dict(
        ask="bits per byte at 4.0 nats per token, where a token has 2 bytes on average",
        wrong={
            2.0: "2.0 is right, in nats; in bits it is 2.0 / ln 2 = 2.885.",
            5.77: "5.77 are the bits of a token, which has two bytes: 2.885.",
            11.54: "11.54: multiplied by the two bytes; each of them costs half a token, 2.885.",
            1.386: "1.386 is 2.0 times ln 2; a nat is more than a bit, so divide: 2.885.",
        },
    ),
}  # fmt: skip
