"""What the grader says in lesson 21: hints, mistakes, remarks, questions."""

exercises = {
    "21a": dict(
        hints=[
            "Is a pull to 0 right for a number that belongs near 1? And for each row of a table?",
            "One walk over model.parameters(), which names a tied one once; the number of axes decides.",
            "for each p with requires_grad: two or more axes -> first list, else second; two dicts",
        ],
        wrong={
            "all decay": "Biases and gains decay, too. Near which number does a gain belong?",
            "nothing decays": "No parameter has a decay. Who is to be pulled?",
            "upside down": "Biases and gains decay, matrices do not. Which way round is it?",
            "gains decay": "Gains of norms decay: they are no bias, and no matrix either.",
            "biases decay": "Biases decay. How many axes has a bias?",
            "biases of layers decay": "Biases of linear layers decay. How many axes has a bias?",
            "embeddings left alone":
                "The tables do not decay. A table of embeddings has rows and columns: what is it?",
            "tied one twice":
                "The tied embedding is in a group twice, under both of its names. Which list names it once?",
            "frozen ones, too": "What is frozen is in a group, too, and decay would move it.",
            "only frozen ones": "Only what is frozen is in your groups.",
            "matrices alone": "Biases and gains are in no group: nobody trains them.",
            "decay of its own": "Which argument says how strong the decay is?",
            "blocks alone": "Embeddings and the last norm are in no group.",
        },
    ),
    "21b": dict(
        hints=[
            "After 3.0, 2.5, 2.6, 2.4, 2.6, 2.5: which of these were better, and than what?",
            "Two numbers are remembered: the lowest loss, for the weights, and the one to beat, for the "
            "count.",
            "lower than lowest: copy; lower than to_beat - min_delta: to_beat = loss, bad = 0; else bad + 1",
        ],
        wrong={
            "compared with the last":
                "On a slow rise each dip counts as better, and you never stop. Better than which loss?",
            "stops one late": "You stop one evaluation late. How many bad ones are enough?",
            "stops one early": "You stop one evaluation early. How many bad ones are enough?",
            "references, not copies":
                "What you kept moved on with the model: the best are the last. Are the tensors copied?",
            "sign of min_delta": "A loss that is a little worse counts as better. Which sign has min_delta?",
            "min_delta ignored": "The least fall counts as better. What is min_delta for?",
            "below the lowest":
                "A run that falls slowly but steadily is stopped. Below which loss has it to fall by "
                "min_delta?",
            "best only by min_delta":
                "The weights of the lowest loss are not kept: by how much it is lower does not matter for "
                "them.",
            "bad ones never forgotten":
                "Bad evaluations are added up over the whole run. What does a better one do to the count?",
            "equal is better":
                "A loss that has fallen by just min_delta counts as better. By more than it, or not?",
            "patience 0 stops": "With patience 0 you stop at once. What does 0 say?",
            "nan is better": "A nan counts as better. Which comparisons hold for it?",
            "stops at the first rise": "You stop at the first bad evaluation. What is patience for?",
            "the last is kept": "The weights of the last evaluation are kept. Which were better?",
            "best at the stop alone": "The first weights are kept for ever. Which were better?",
            "upside down": "True is said while it goes well. When is it to be said?",
            "never stops": "You never say stop. Who counts the bad evaluations?",
        },
    ),
    "21c": dict(
        hints=[
            "Which weights of a run would you keep, and how much of its loss is luck?",
            "For each decay a list with one number per seed; then a mean, and the decay with the lowest one.",
            "means[decay] = mean over seeds of the lowest of run(decay, seed); the key of the least; means",
        ],
        wrong={
            "last loss": "You judge by the last loss. Which weights of a run are kept?",
            "first loss": "You judge by the first loss, before anything is learned.",
            "mean of the whole run": "You take the mean over a run. Which of its weights are kept?",
            "highest loss": "You judge by the highest loss of each run.",
            "first seed alone": "One seed for each decay: then chance decides. What are the others for?",
            "luckiest seed": "You take the luckiest seed of each decay. Who is lucky more often?",
            "unluckiest seed":
                "You take the unluckiest seed of each decay. What do all of them say together?",
            "sum, not mean": "The choice is right, the numbers are sums over seeds.",
            "lowest of the mean curve":
                "You take the mean curve and its lowest place. Each run has its own best step.",
            "the highest mean": "That is the decay with the highest loss.",
            "the loss in its place": "That is the lowest mean. Which decay has it?",
            "smallest decay": "That is the smallest decay, whatever the losses.",
            "last of equal ones": "Of equal ones you take the last.",
            "trained twice": "Each run is made more than once, and runs take long.",
        },
    ),
}  # fmt: skip

predictions = {
    "21.1": dict(
        ask="a weight of 1 after 1,000 steps, lr 0.001, weight decay 0.1, no gradient",
        wrong={
            0.9: "0.9 would be without compounding; 0.9999 to the power of 1,000 is 0.905.",
            0.0: "0 would be without lr: each step takes lr x decay, a ten-thousandth. It is 0.905.",
            0.368: "0.368 would be for a decay of 1; with 0.1 it is 0.905.",
        },
    ),
}  # fmt: skip
