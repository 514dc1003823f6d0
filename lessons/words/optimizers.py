"""What the grader says in lesson 16: hints, mistakes, remarks, questions."""

exercises = {
    "16a": dict(
        hints=[
            "What must be remembered from call to call, and for how many tensors?",
            "state[i] for tensor number i, 0 at first; a line for v, a line for p, in place.",
            "for each i: v = momentum * (old v or 0) + g, a new tensor; state[i] = v; p -= lr * v",
        ],
        wrong={
            "gradient times 1 - momentum":
                "The first step is a tenth of what it should be. With which factor does the gradient enter "
                "v?",
            "no momentum": "Each step knows only its own gradient. Where is v kept until the next call?",
            "nothing fades": "Old gradients never fade: v is a sum of all. Where is the factor?",
            "one buffer for all":
                "The second tensor gets the first one's v. How many of them does the state hold?",
            "rate inside the buffer":
                "Right as long as lr stays. When it changes: which lr should old gradients be multiplied by?",
            "uphill": "Weights move with the gradient: the loss grows. Which sign?",
            "Nesterov":
                "That is Nesterov's variant: it looks one step ahead. Here a weight moves by lr times v.",
            "the old v":
                "The first step changes nothing: you move by the v of the step before. What comes first?",
            "a new tensor":
                "No weight has moved: p is a new tensor, the caller's is as it was. What changes it in "
                "place?",
            "gradient kept, not copied":
                "state[i] was the gradient itself at first, and the next backward wrote over it. Keep a new "
                "tensor.",
            "gradient overwritten":
                "The weights move right, but the caller's gradient is no longer what it was.",
            "momentum on the gradient": "What is multiplied by momentum: what is remembered, or what is new?",
        },
    ),
    "16b": dict(
        hints=[
            "m and v begin at 0. By how much are they too small after one step, and after t?",
            "The state holds t, counted from 1, and for each tensor m and v as they are without a hat.",
            "m, v: averages of g and g^2; m / (1 - b1^t), v so too; p -= lr m_hat / (root v_hat + eps)",
        ],
        wrong={
            "no bias correction":
                "The first step is {first:.2f} times lr, not 1. What are m and v, which began at 0, divided "
                "by?",
            "only m corrected": "The first step is {first:.1f} times lr, not 1. Is v as it began, too?",
            "only v corrected": "The first step is {first:.2f} times lr, not 1. Is m as it began, too?",
            "t from 0": "1 - beta ** 0 is 0, and m / 0 is no number. From where is t counted?",
            "t from 0, one factor":
                "In the first step t is 0, and you divide by 1 - beta ** 0. From where is t counted?",
            "t stays 1": "The first step is right; then t is 1 again. Where is it kept?",
            "t counts tensors": "t grows with each tensor. It counts steps: in which loop does it stand?",
            "corrected for good": "m_hat and v_hat are for this step. What should the next one begin with?",
            "eps inside the root":
                "Right unless gradients are near 1e-4 or smaller. Is eps added to v, or to its root?",
            "no eps": "A weight whose gradient was always 0: 0 / 0. What is added below the line?",
            "eps not the argument": "Right for one eps and for no other. Where is the argument?",
            "size, not square": "v is a mean of |g|. Its root has a strange unit: mean of what?",
            "no root":
                "A gradient ten times as large gives a step a tenth as long. What is missing around v?",
            "square of the mean": "v averages m squared. It should average the square of g.",
            "betas swapped": "The two betas have changed places. Which average is the longer one?",
            "sum, not average":
                "The first step is {first:.0f} times lr. In an average the weights of old and new add up to "
                "what?",
            "one average for all":
                "The second tensor gets the first one's averages. How many pairs of m and v are there?",
            "averages not kept": "m and v begin at 0 in each call. Where are they kept?",
            "uphill": "Weights move with the gradient: the loss grows. Which sign?",
            "a new tensor": "No weight has moved: p is a new tensor. What changes it in place?",
        },
        also={
            "eps before the correction":
                "Yours adds eps before v is corrected, as TensorFlow does: for tiny gradients another step.",
        },
    ),
    "16c": dict(
        hints=[
            "Should the pull towards 0 be divided by the root of v, as the gradient is?",
            "Before Adam's step, each tensor of two axes or more is made smaller, in place.",
            "for p of 2 axes: p times (1 - lr * decay), in place; then adam_step as it is",
        ],
        wrong={
            "L2 in the gradient":
                "decay x weight goes through m and v, which divide it away. Where does AdamW put it?",
            "L2 in every gradient":
                "Two things: decay x weight is put into the gradient, and vectors have it, too.",
            "decay not times lr":
                "Each step takes a tenth of a weight away, however small lr is. What is decay multiplied by?",
            "weights grow": "Without a gradient weights should shrink. Yours grow.",
            "vectors decayed": "Biases and gains of norms shrink, too. What tells them from matrices?",
            "matrices left out": "Vectors shrink and matrices do not. Which of them should?",
            "nothing decayed":
                "That is Adam: no weight of the caller shrinks by itself. Is decay there, and in place?",
            "lr twice": "Your weights hardly shrink: how often is lr a factor?",
            "the same for all": "Each weight loses the same. A large one should lose more than a small one.",
            "decay twice":
                "A weight with no gradient loses twice what it should. How often does yours shrink?",
        },
        also={
            "decay after the step":
                "Yours shrinks what Adam has just added, too: a difference of lr squared, which nobody will "
                "notice.",
        },
    ),
    "16d": dict(
        hints=[
            "May one rate serve all, and may one lucky batch decide?",
            "Two loops, names and rates; means of the last losses; what is not finite is left out.",
            "best (name, rate, mean) of each name, then all of them sorted by the mean, smallest first",
        ],
        wrong={
            "lowest of the curve":
                "A curve may dip and rise again. Which part of it says how good the run has become?",
            "mean of the curve":
                "The first steps count as much as the last. How many losses is the mean taken of?",
            "last loss only": "One batch is a guess. How many losses count?",
            "first losses": "Those are the first losses. Which end of the list is meant?",
            "first rate only": "Each has but its first rate tried. And others?",
            "largest rate only": "Each is raced at its largest rate only.",
            "best of the last": "The best of the last is luck. Which number stands for all?",
            "nan not sorted out":
                "nan is neither less nor greater than anything: what does a sort do with it?",
            "only nan sorted out": "One run ended at infinity. Is that a result?",
            "worst first": "That is the worst rate of each.",
            "not sorted by loss": "Rates and losses are right. In which order should the list be?",
            "smallest rate wins": "Your list goes by rate. What does it mean for one to be best?",
            "sum, not mean": "Your losses are sums over the last ones. What is one loss of them?",
        },
    ),
}  # fmt: skip

predictions = {
    "16.1": dict(
        ask="length of Adam's first step for a gradient of 1000, with a learning rate of 0.001",
        wrong={
            1.0: "1 is lr times g, which is SGD. Adam divides the gradient by its own size: 0.001.",
            0.00316: "0.00316 is lr times 0.1 / root of 0.001: with no correction. It is 0.001.",
            0.0316: "0.0316 is what comes out if only m is corrected. It is 0.001.",
            0.0001: "With only v corrected it would be 0.0001, a tenth; right is 0.001.",
        },
    ),
    "16.2": dict(
        ask="place of SGD, each at its best rate, among SGD, momentum, Adam and AdamW: 1 to 4",
        wrong={
            1: "SGD is first where all weights need one pace. In a transformer they do not: it is last, 4.",
            2: "Second would need Adam or momentum to lose. One pace for all weights is too little: 4.",
            3: "Momentum gathers what SGD forgets, so SGD is behind it, and behind both Adams: 4.",
        },
    ),
}  # fmt: skip
