"""The 200 questions of the chats: ten forms of twenty subjects."""

FORMS = (
    "What is {}?",
    "Explain {} to a child.",
    "Write two sentences about {}.",
    "Why does {} matter?",
    "Give me three facts about {}.",
    "Who first studied {}?",
    "Write a short poem about {}.",
    "What is the hardest thing about {}?",
    "How would you teach {} in a school?",
    "Name one book about {} and say why it is good.",
)
SUBJECTS = (
    "gravity",
    "photosynthesis",
    "the French Revolution",
    "bread baking",
    "the game of chess",
    "prime numbers",
    "the water cycle",
    "jazz music",
    "the human heart",
    "sailing",
    "computer memory",
    "ancient Rome",
    "bees and honey",
    "volcanoes",
    "the alphabet",
    "steam engines",
    "the Moon",
    "painting with oil",
    "learning a language",
    "a balanced diet",
)
QUESTIONS = tuple(form.format(subject) for subject in SUBJECTS for form in FORMS)
