"""All readers of files: what they read, sound examples, and how to damage them."""

from tests.readers import demonstrations, policies, runs

READERS = {**demonstrations.READERS, **policies.READERS, **runs.READERS}
