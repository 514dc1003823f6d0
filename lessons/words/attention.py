"""What the grader says in lesson 9: hints, mistakes, remarks, questions."""

exercises = {
    "9a": dict(
        hints=[
            "If 64 numbers of variance 1 are added, how large is the sum, typically?",
            "One product of q with k turned around in its last two axes; one division.",
            "score[b, t, s] = sum over i of q[b, t, i] * k[b, s, i], divided by the root of the number of i.",
        ],
        wrong={
            "no scale":
                "Your scores have a spread of {yours:.2f}, more in larger heads. What brings it back to 1?",
            "divided by d":
                "Your scores have a spread of {yours:.2f}. Divided by the variance, or by its root?",
            "root of T":
                "Each score is a sum over how many products? That number is not the length of the text.",
            "multiplied by the root": "Your scores have a spread of {yours:.2f}. Which way does the root go?",
            "keys ask queries": "Row t should hold what query t asks of each key. What do your rows hold?",
            "softmax already": "Your rows sum to 1. Scores come before the softmax, and may be negative.",
            "cosine": "No score of yours is above 1. Do long vectors count as much as short ones?",
            "batch first": "Where did the batch go? Each row of the batch has its own T x T scores.",
        },
    ),
    "9b": dict(
        hints=[
            "What does the softmax make of a score of minus infinity?",
            "torch.triu or torch.tril builds the triangle; it has to be applied before the softmax.",
            "where s > t, set the score to -inf; then softmax over the last axis.",
        ],
        wrong={
            "no mask": "The picture is a full square. Who may token 0 look at?",
            "upper triangle kept": "The picture is a mirror image: your tokens look only ahead.",
            "diagonal cut": "Row 0 is NaN. Whom is it left to look at, if not itself?",
            "one ahead": "Each token also sees the very one it has to guess. Where does the diagonal begin?",
            "masked with 0":
                "A score of 0 is no silence: e to the 0 is 1. Which score becomes a weight of 0?",
            "mask after softmax": "Row 0 sums to {row0:.2f}, not 1. Who is still in the denominator?",
            "detached denominator":
                "The weights are right, their gradient is not: something in them is cut off from the graph.",
            "softmax over queries":
                "Rows sum to {low:.2f} ... {high:.2f}. Over which axis does a query share out its attention?",
            "log softmax": "Weights are negative here. Shares of attention lie between 0 and 1.",
            "no exponential": "Scores can be negative, shares cannot. What turns one into the other?",
            "changed in place":
                "The weights are right, but the caller's scores were changed: names that end in _ do that.",
            "divided by the past's sum":
                "Where a later score is by far the largest, the past is left with 0, and you divide by "
                "it. Mask first.",
            "masked with -10":
                "A masked score of -10 still has its share, e to the -10. Which number has none?",
            "exp overflows":
                "e to the 200 is too much for float32: scores may be large. What may you subtract from a "
                "whole row?",
            "one maximum for all":
                "One maximum for all rows leaves some of them nothing but zeros. Whose maximum is it?",
        },
    ),
    "9c": dict(
        hints=[
            "Three matrices make three things of x: one asks, one is compared, one is handed over. Which?",
            "scores and causal are yours already; what is left is three products before and one after.",
            "weights = causal(scores(x @ wq, x @ wk)), and each output is the weighted sum of x @ wv.",
        ],
        wrong={
            "keys for values":
                "What is looked for and what is handed over come from different matrices. Where is wv?",
            "weights transposed":
                "Output 0 should be the value of token 0 alone. Which index is summed over?",
            "value not projected": "The outputs are as wide as the input. What should be averaged is x @ wv.",
            "queries and keys swapped": "Who asks and who answers? Row t belongs to the query of token t.",
            "no scale": "The weights are too sharp: the scores of 9a are divided by something.",
            "no mask": "The picture is a full square: 9b was for this.",
            "x for queries": "Keys and queries are the same here. Where is wk?",
            "input added":
                "Output 0 is twice the value of token 0. The residual is added by the block, not here.",
            "mean of the past":
                "Each output is a plain mean of the past: nobody is looked at more than others.",
            "masked with -10":
                "Where the scores of the past are below -10, the future has the larger share. Which "
                "number is never larger?",
        },
    ),
    "9d": dict(
        hints=[
            "Which number of x says where a token stands? What has a query to be, to fit the key of t - 1?",
            "Keys: the position as it is. Queries: the position, moved by one. Values: the token alone.",
            "wk[t, t] = 1; wq[t, t - 1] = a large number, token 0 asks for itself; wv has an identity below",
        ],
        wrong={
            "looks at itself": "Output t is token t: each query asks for its own place. Who is before it?",
            "asks for the next":
                "The query of t asks for t + 1, which is masked. What does softmax share out then?",
            "two back": "Output t is token t - 2. Row t of wq, which column?",
            "too soft":
                "The right token has the largest share, but not all of it. How sharp can a question be?",
            "away from it": "The token before has the smallest share. Which sign makes a high score?",
            "always the first": "All outputs are token 0: all queries are equal.",
            "tokens in the keys": "The scores depend on the tokens, too. Which rows of wk should be zero?",
            "position handed over":
                "You hand over where a token stands, not which one it is. Which rows of x are the token?",
            "position and token":
                "Position and token are added up in the output. Which rows of wv should be zero?",
            "nothing handed over": "The outputs are zero. Which rows of wv belong to the token?",
        },
    ),
}  # fmt: skip

predictions = {
    "9.1": dict(
        ask="standard deviation of q·k at head size 64, if all entries have variance 1",
        wrong={
            64.0: "64 is the variance; the question is its root, 8.",
            1.0: "1 is what it becomes after the scaling of 9a; before, it is 8.",
            4.16: "4.16 is ln 64; variances add up, so it is the root of 64, which is 8.",
        },
    ),
}  # fmt: skip
