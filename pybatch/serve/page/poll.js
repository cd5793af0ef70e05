// Asking again and again, while somebody looks.

const LONGEST = 10;  // seconds between two attempts while the server does not answer

/**
 * Calls ask() every so many seconds while the page is seen, and less often while it fails. failed(error) gets what it
 * raised. Returns a function that asks at once.
 */
export function poll(seconds, ask, failed) {
  let timer = null;
  let running = false;
  let wait = seconds;

  async function turn() {
    clearTimeout(timer);
    if (running || document.hidden) return;
    running = true;
    try {
      await ask();
      wait = seconds;
    } catch (error) {
      failed(error);
      wait = Math.min(LONGEST, 1.5 * wait);
    }
    running = false;
    if (!document.hidden) timer = setTimeout(turn, 1000 * wait);
  }

  document.addEventListener("visibilitychange", turn);
  window.addEventListener("online", turn);
  turn();
  return turn;
}
