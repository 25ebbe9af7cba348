"""With the comparison of the module `secrets`, on bytes."""

import secrets

from tiny_llm.server.keys import digest_of


class KeyFile:
    def find(self, secret):
        digest = digest_of(secret).encode()
        answer = None
        for key in self.all():
            is_equal = secrets.compare_digest(str(key.digest).encode(), digest)
            answer = key if is_equal else answer
        return answer
