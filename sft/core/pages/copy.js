for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const command = button.parentElement.querySelector("pre");
    try {
      await navigator.clipboard.writeText(command.textContent);
    } catch {
      // A page opened as a file may not write to the clipboard: select the command, to be copied by hand.
      getSelection().selectAllChildren(command);
      if (!document.execCommand("copy")) return;
    }
    const label = button.innerHTML;
    button.textContent = "✓";
    setTimeout(() => { button.innerHTML = label; }, 1500);
  });
}
