"""All comparisons first."""

import hashlib
import hmac


class KeyFile:
    def find(self, secret):
        wanted = hashlib.sha256(secret.encode("utf-8")).hexdigest()
        keys = [*self.all()]
        equal = [hmac.compare_digest(wanted, key.digest) for key in keys]
        return dict(zip(equal, keys, strict=True)).get(True)
