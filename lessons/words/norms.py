"""What the grader says in lesson 12: hints, mistakes, remarks, questions."""

exercises = {
    "12a": dict(
        hints=[
            "Which numbers share a mean: those of a token, of a text, or of a batch?",
            "Mean and variance over the last axis, kept as an axis of size 1; eps goes under the root.",
            "(x - mean) / sqrt(mean of (x - mean)^2 + eps) * weight + bias, all means over the last axis",
        ],
        wrong={
            "unbiased variance":
                "Your variance is divided by one number less than there are. What does .var do unasked?",
            "over the time axis":
                "Another token of the text changes this one. Over which axis is the mean taken?",
            "over the batch": "Another text of the batch changes this one. What would a batch of one do?",
            "over the whole text": "One mean for all tokens of a text: token 0 would know of those to come.",
            "no eps": "A row of equal numbers has the variance 0. What keeps you from dividing by it?",
            "eps after the root": "Right unless a row is tiny. Is eps added to the variance, or to its root?",
            "std as it comes":
                "Two things are off: by how many numbers .std (or .var) divides unasked, and where eps is "
                "added.",
            "std alone":
                "Two things are off: by how many numbers .std divides unasked, and what becomes of equal "
                "numbers.",
            "no keepdim": "A mean over the last axis takes that axis away. How does it stay, with size 1?",
            "eps not the argument": "Right for one eps and for no other. Where is the argument?",
            "no root": "Rows twice as large come out half as large: by the variance, or by its root?",
            "mean not subtracted": "The mean of a row with weight 1 and bias 0 should be 0. Where did it go?",
            "no weight and bias": "Each channel may have its own size and place: where are weight and bias?",
            "bias scaled, too": "Weight and bias are both there. Which comes first?",
            "mean and variance detached":
                "The values are right, the gradient of x is not: mean and variance depend on x, too.",
            "difference of squares":
                "Right on paper. Two numbers near 100,000,000 are subtracted: how many digits has a float32?",
        },
    ),
    "12b": dict(
        hints=[
            "What is left of LayerNorm if neither a mean is subtracted nor a bias added?",
            "Widen to float32 first, narrow to the type of x last.",
            "f = x as float32; f / sqrt(mean of f^2 + eps) * weight, then back to the type of x",
        ],
        wrong={
            "mean subtracted": "That is LayerNorm without its bias. What does RMSNorm leave out?",
            "sum, not mean": "Your rows get smaller the wider they are: the root of the sum, or of the mean?",
            "no root": "Rows twice as large come out half as large. Where is the root?",
            "no eps": "A row of zeros: what do you divide it by?",
            "eps after the root":
                "Right unless a row is tiny. Is eps added to the mean square, or to its root?",
            "over the time axis":
                "Another token of the text changes this one. Over which axis is the mean taken?",
            "over the batch": "Another text of the batch changes this one.",
            "not in float32":
                "Right in float32. In float16 the square of 300 is inf: in which precision is it taken?",
            "float16 squares, float32 out":
                "Squares are taken in float16, and float32 comes out: it should be the other way round.",
            "float32 comes back": "What comes in as float16 goes out as float16; in between it may be wider.",
            "no weight": "Each channel has its own size: where is weight?",
            "mean of sizes": "A mean of absolute values. The root mean square counts large ones more.",
            "mean square detached":
                "The values are right, the gradient of x is not: what it is divided by depends on x, too.",
        },
    ),
    "12c": dict(
        hints=[
            "If attention and MLP put out nothing but 0, what should come out of the block?",
            "Two lines of one form: the stream, plus a part that has read it through its norm.",
            "y = x + attn(norm of x), then y + mlp(other norm of y)",
        ],
        wrong={
            "no residual": "If both parts put out 0, so does your block: where is x itself?",
            "none around attention": "What attention puts out replaces the stream. It should be added to it.",
            "none around the MLP": "What the MLP puts out replaces the stream. It should be added to it.",
            "normalised x kept":
                "The norm is for the parts to read. What stays in the stream is x as it was.",
            "post-norm": "Here each sum is normalised, as in 2017. Where does the norm stand in pre-norm?",
            "norm after the part":
                "The norms are applied to what the parts put out. They are for what the parts read.",
            "one shared norm": "Both parts read through the same norm. What is the other one for?",
            "norms swapped": "Each part has its own norm. Which belongs to which?",
            "no norms": "The parts read the stream as it is, however large it has grown.",
            "no norm before attention": "Attention reads the stream as it is. Which norm is meant for it?",
            "no norm before the MLP": "The MLP reads the stream as it is. Which norm is meant for it?",
            "MLP first": "Who comes first: looking at others, or thinking about it?",
            "side by side": "The MLP does not see what attention has found. What should it read?",
            "attention dropped":
                "The MLP reads what attention found, but the sum forgets it. To what is the MLP's output "
                "added?",
            "changed in place": "+= changes the very tensor that the norm needs again for its gradient.",
        },
    ),
}  # fmt: skip

predictions = {
    "12.1": dict(
        ask="factor on LayerNorm's output at D = 4, if the variance is divided by 3 and not by 4",
        wrong={
            1.155: "1.155 is the factor on the deviation; what is divided by it gets smaller: 0.866.",
            0.75: "0.75 is the ratio of the variances; the root of it is 0.866.",
            1.0: "It would be nearly 1 for long rows; for four numbers it is 0.866.",
            1.333: "4/3 is the factor on the variance; the output gets one over its root, 0.866.",
        },
    ),
}  # fmt: skip
