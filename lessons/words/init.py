"""What the grader says in lesson 14: hints, mistakes, remarks, questions."""

exercises = {
    "14a": dict(
        hints=[
            "Which loss has a model that says 1/65 to every letter, and how large are its logits?",
            "One loop over named_parameters, under torch.no_grad, and three cases: gains, biases, the rest.",
            "a gain: fill with 1; a bias: fill with 0; any matrix or table: normal with 0.02",
        ],
        wrong={
            "standard deviation 1": "The first loss is {loss:.0f}, of a guess 4.17. How large are logits?",
            "all zeros": "4.17 it is, and for ever: which gradient is no product with a zero?",
            "all equal": "4.17 it is, but hidden units get equal gradients. What tells them apart?",
            "root of the width": "The first loss is {loss:.2f}. Are logits to be as large as x?",
            "only positive": "They are all on one side of 0. Around which number should they lie?",
            "everything drawn": "Gains are random, too. By what does a norm multiply at first?",
            "gains at zero": "4.17 it is, as nothing passes a gain of 0. What is it for?",
            "biases at one": "Biases add the same to every text. With what should they begin?",
            "embeddings forgotten": "The loss is NaN: wte and wpe are no Linear. Who sets them?",
            "gradients recorded": "To set a weight is no part of the graph. What says so?",
        },
        also={
            "a head of zeros":
                "Your head begins at zero: the first loss is exactly ln V, and the head's gradient is "
                "not zero.",
        },
    ),
    "14b": dict(
        hints=[
            "How many outputs are added to the stream in L blocks, and what adds up: spreads or variances?",
            "Two matrices of a block write into the stream: attention's last and the MLP's last.",
            "for each block: attn.o and mlp.down times 1 / root of (2 x number of blocks), in place",
        ],
        wrong={
            "nothing changed": "Weights are as before. Is it a tensor you change, or a name?",
            "root of L": "How many outputs add up, two in a block?",
            "no root": "What adds up is variances. What follows for the divisor?",
            "multiplied": "Yours grow. Should outputs be larger, or smaller?",
            "twelve layers": "Your divisor does not know how deep this model is.",
            "each its own depth": "Your blocks differ. How many outputs add up in all?",
            "every matrix": "Which matrices write into the stream? Others shrank.",
            "attention only": "Attention is not all that adds to the stream.",
            "MLP only": "The MLP is not all that adds to the stream.",
            "up, not down": "Which matrix of the MLP writes into the stream?",
            "initialised again": "All matrices have 0.02 again: what ran last?",
        },
        also={
            "drawn anew": "Yours draws these matrices anew, as init_weights does. As good.",
        },
    ),
    "14c": dict(
        hints=[
            "Who is still there when your function is called the second time?",
            "A list, a hook on each block that appends to it, one pass in eval mode, and the handles.",
            "keep the mode; hook each block; eval, no_grad, model(idx); remove all handles; mode back",
        ],
        wrong={
            "hooks left": "After two calls the first list has {entries}: who writes?",
            "dropout on": "Two calls give different numbers. What is random in your pass?",
            "left in eval": "The model came in training mode and leaves without it.",
            "always back to train": "A model that came in eval mode leaves in training mode.",
            "what enters": "The first is that of the embeddings. Before a block, or after?",
            "over the last axis": "A mean of many spreads. The stream has one, over all its numbers.",
            "over the batch":
                "This says how the texts differ from each other. Over which numbers is it asked?",
            "variance": "These are variances. The spread is the root.",
            "mean": "This is the mean. How far from it do numbers lie?",
            "what attention adds": "This is what attention adds. Which module puts out the stream?",
            "what the MLP adds": "This is what an MLP adds. Which module puts out the stream?",
            "last block only": "Each block has a hook of its own.",
        },
        also={
            "tensors": "Yours are tensors; .item() makes them Python floats.",
        },
    ),
}  # fmt: skip

predictions = {
    "14.1": dict(
        ask="first loss, in nats, of a well-initialised model of 65 letters",
        wrong={
            0.0: "0 is a sure and right guess. A fresh model knows nothing: ln 65 = 4.174.",
            6.02: "6.02 is right, in bits; in nats it is 4.174.",
            1.0: "1 is no special loss. A guess among 65 equally likely letters costs ln 65 = 4.174.",
            0.0154: "0.0154 is the probability 1/65; the loss is its -ln, 4.174.",
            65.0: "65 is the perplexity; the loss is its logarithm, 4.174.",
        },
    ),
}  # fmt: skip
