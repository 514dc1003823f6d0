"""What the grader says in lesson 11: hints, mistakes, remarks, questions."""

exercises = {
    "11a": dict(
        hints=[
            "6 query heads, 3 heads of keys: which of them does query head 3 read?",
            "torch has two functions that repeat: one goes 0 1 2 0 1 2, the other 0 0 1 1 2 2. Which axis?",
            "output head h is input head h // (n_head / n_kv)",
        ],
        wrong={
            "tiled": "Your heads go 0 1 2 0 1 2. Queries that share a head are neighbours: 0 0 1 1 2 2.",
            "time repeated": "The text has become longer. Which axis holds the heads?",
            "batch repeated": "The batch has become larger. Which axis holds the heads?",
            "numbers repeated":
                "The heads have become wider. There should be more of them, each as wide as before.",
            "n_head times": "Each head is there n_head times. How many queries share one?",
            "n_kv times":
                "Each head is there n_kv times. With 6 query heads and 2 of keys, how many share one?",
            "left as it is": "There are still n_kv heads. Each query head needs a partner.",
            "an axis of its own":
                "The copies are right, on an axis of their own. Heads and copies have to become one axis.",
            "time repeated, then viewed":
                "The shape is right, but tokens were repeated, and half of the text slid into the next head.",
            "first head for all": "All query heads read key head 0. What are the others for?",
            "filled up with zeros":
                "The last heads are zeros: their queries find nothing. Whose keys could they share?",
        },
    ),
    "11b": dict(
        hints=[
            "What of an old token is needed again when a new one comes: its query, its key, its value?",
            "A product: two kinds of vectors, layers, heads that have them, head size, tokens, bytes.",
            "2 * n_layer * n_kv_head * (n_embd / n_head) * T * 4",
        ],
        wrong={
            "half": "Half of it. Keys alone, without values? Or two bytes a number, where float32 has four?",
            "all heads":
                "As much as with keys for each query head. How many heads have keys, and how wide is one?",
            "one layer": "That is one layer. The next one makes keys of its own from what this one puts out.",
            "bits": "8 times too much: that is in bits.",
            "numbers, not bytes": "That many numbers are kept. How many bytes has one in float32?",
            "heads C wide": "n_head times too much: how many of the C numbers does one head have?",
            "whole context": "That is a full context of block_size tokens. How many are there?",
            "one token": "That is what one token adds.",
            "queries too": "Too much by the queries. Does anybody ask again for the query of an old token?",
            "scores": "These are the T x T scores, needed for a moment. What does each new token need again?",
            "token vectors": "That is one vector x for each token and layer. What is made of it, and kept?",
            "megabytes": "These are MiB. Bytes are asked for, a whole number.",
        },
    ),
    "11c": dict(
        hints=[
            "Two query heads that share keys are like two rows of a matrix. Which axis can they stand on?",
            "View the H heads of q as (n_kv, H / n_kv): then q and k have the same number of heads.",
            "q (B, K, H/K, hs) times k turned (B, K, hs, T), softmax over T, times v; join K and H/K again.",
        ],
        wrong={
            "k and v copied":
                "Right numbers, but something as large as k for all query heads was made: a product copies "
                "what it has to repeat, too. Must k grow?",
            "groups mixed up":
                "Query heads 0 and 3 share a key head; neighbours should. In which order is H cut in two?",
            "queries cut": "Some query heads are gone. All of them ask; only keys and values are fewer.",
            "queries averaged":
                "All queries of a group get the same answer. They share keys and values, no questions.",
            "no scale":
                "The shares are too sharp. Scores are divided by the root of the head size, as in lesson 9.",
            "root of T":
                "Each score is a sum over how many products? That number is not the length of the text.",
            "softmax over queries":
                "The shares of a query do not sum to 1. Over which axis do the tokens of the cache compete?",
            "no softmax": "These are sums by scores. What makes shares of scores?",
            "keys for values": "The output is a mean of keys. What is handed over?",
            "newest token left out":
                "The last token of the cache is the new one itself. It may look at itself.",
            "newest token only":
                "Each output is the newest value alone. Is a triangle at work here? One query has no future.",
            "exp overflows":
                "e to the 200 is too much for float32, and scores may be large. What does torch.softmax "
                "subtract?",
            "one maximum for all":
                "One maximum for all heads leaves some of them nothing but zeros. Whose maximum is it?",
        },
    ),
}  # fmt: skip

predictions = {
    "11.1": dict(
        ask="bytes of the cache for 64 tokens: 4 layers, n_kv = 2 (of 4 heads), head size 32, float32",
        wrong={
            65536.0: "65,536 are the keys alone; with the values 131,072.",
            32768.0: "32,768 is one layer; 4 of them make 131,072.",
            262144.0: "262,144 would be all 4 heads; only 2 have keys and values: 131,072.",
            1048576.0: "1,048,576 is the number of bits; a byte has 8: 131,072.",
        },
    ),
}  # fmt: skip
